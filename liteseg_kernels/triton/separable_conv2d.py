"""separable_conv2d - depthwise k x k -> pointwise GEMM -> + bias -> + residual -> activation, in one launch.

Replaces: two F.conv2d, an add and an activation; the depthwise map is never stored (the backward computes it again)
Shapes:   x [N, C, H, W], depthwise [C, 1, KH, KW], pointwise [CO, C, 1, 1] -> out [N, CO, HO, WO]; any strides in,
          out in x's memory format; any kernel size, stride, padding and dilation
Traffic:  minimum (N*C*H*W + N*CO*HO*WO [+ residual] + C*KH*KW + C*CO) * sizeof(T); eager moves 2*N*C*HO*WO*sizeof(T)
          more, and 2*N*CO*HO*WO*sizeof(T) more for each of add and activation
Bound:    memory, in float16, up to C = CO = 96; not measured on a GPU yet
Launch:   forward grid (N * pixel tiles, CO blocks, C splits); _CONFIGS keyed on (pass, dtype class, CO or C block).
          From C = 512 on, C is split eight ways so that a stride-32 map fills the device: float32 parts, then a sum
Numerics: float32 taps and accumulation; the depthwise value is rounded to T for the product, as eager stores it.
          float32 products are exact unless torch allows tf32. Sums are cut at fixed places and added in order, no
          atomics: two runs give the same bits
Backward: depthwise gradient map [N, HO, WO, C] in T as the only temporary of that size; grad_x gathers from it, weight
          gradients are sums of at most 64 float32 parts
Limits:   float32, float16, bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import empty_like_format
from ._common import (
    Tile,
    activate,
    activation_gradient,
    dot_precision,
    guard,
    needs_wide_index,
    offsets,
    sum_parts,
    tile_position,
    widen,
    width_class,
)

# taps of kernels up to 5 x 5 are unrolled; beyond, the code would be too long
_MOST_UNROLLED = tl.constexpr(25)
# C from which the forward is split over C, and into how many parts
_SPLIT_FROM, _SPLITS = 512, 8
# most float32 parts of a weight gradient
_MOST_PARTS = 64

# (pass, dtype class, block of the other channel extent) -> tile. `inner` is the channel block that is summed over or
# walked, `outer` the one that is written.
_CONFIGS = {
    ("forward", "half", 16): Tile(8, 16, 16, 16, 4, 1),
    ("forward", "half", 32): Tile(8, 16, 16, 32, 8, 1),
    ("forward", "half", 64): Tile(8, 8, 16, 64, 8, 1),
    ("forward", "half", 128): Tile(8, 8, 16, 128, 8, 1),
    ("forward", "single", 16): Tile(8, 8, 16, 16, 4, 1),
    ("forward", "single", 32): Tile(8, 8, 16, 32, 4, 1),
    ("forward", "single", 64): Tile(8, 8, 16, 64, 8, 1),
    ("forward", "single", 128): Tile(4, 8, 16, 128, 8, 1),
    ("hidden", "half", 16): Tile(8, 16, 32, 16, 4, 1),
    ("hidden", "half", 64): Tile(8, 16, 32, 64, 8, 1),
    ("hidden", "single", 16): Tile(8, 8, 16, 16, 4, 1),
    ("hidden", "single", 64): Tile(8, 8, 16, 64, 8, 1),
    ("pointwise", "half", 128): Tile(8, 8, 32, 128, 8, 1),
    ("pointwise", "half", 32): Tile(8, 8, 32, 32, 4, 1),
    ("pointwise", "single", 128): Tile(4, 8, 16, 128, 8, 1),
    ("pointwise", "single", 32): Tile(4, 8, 16, 32, 4, 1),
    ("input", "half", 64): Tile(4, 8, 1, 64, 4, 1),
    ("input", "single", 64): Tile(4, 8, 1, 64, 4, 1),
    ("depthwise", "half", 32): Tile(4, 8, 4, 32, 4, 1),
    ("depthwise", "single", 32): Tile(4, 8, 4, 32, 4, 1),
    ("elementwise", "half", 64): Tile(4, 8, 1, 64, 4, 1),
    ("elementwise", "single", 64): Tile(4, 8, 1, 64, 4, 1),
}


def _config(stage: str, dtype: torch.dtype, extent: int) -> Tile:
    """The narrowest row of the table that holds `extent` channels, else the widest."""
    kind = width_class(dtype)
    widths = sorted(key[2] for key in _CONFIGS if key[:2] == (stage, kind))
    return _CONFIGS[stage, kind, next((w for w in widths if w >= extent), widths[-1])]


@triton.jit
def _tap(total, x, offset, iy, ix, c, depthwise, ky, kx, C, H, W, x_c, x_h, x_w, dilation_h, dilation_w, KH, KW):
    y = iy + ky * dilation_h
    z = ix + kx * dilation_w
    inside = (y >= 0) & (y < H) & (z >= 0) & (z < W)
    pointers = x + (offset + ky * dilation_h * x_h + kx * dilation_w * x_w)[:, None] + c[None, :] * x_c
    value = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    weight = tl.load(depthwise + c * (KH * KW) + ky * KW + kx, mask=c < C, other=0.0)
    return total + value.to(tl.float32) * weight.to(tl.float32)[None, :]


@triton.jit
def depthwise_tile(
    x,  # [C, H, W], one image
    depthwise,  # [C, KH, KW], contiguous
    oy,  # [P], output rows
    ox,  # [P], output columns
    c,  # [BC]
    C,
    H,
    W,
    x_c,
    x_h,
    x_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The depthwise convolution's float32 values at pixels (oy, ox) and channels c: [P, BC]."""
    iy = oy * stride_h - padding_h
    ix = ox * stride_w - padding_w
    wide_c = widen(c, WIDE)
    offset = widen(iy, WIDE) * x_h + widen(ix, WIDE) * x_w  # [P]
    total = tl.zeros((oy.shape[0], c.shape[0]), tl.float32)
    if KH * KW <= _MOST_UNROLLED:
        for ky in tl.static_range(KH):
            for kx in tl.static_range(KW):
                total = _tap(
                    total, x, offset, iy, ix, wide_c, depthwise, ky, kx, C, H, W, x_c, x_h, x_w, dilation_h, dilation_w,
                    KH, KW,
                )  # fmt: skip
    else:
        for ky in range(KH):
            for kx in range(KW):
                total = _tap(
                    total, x, offset, iy, ix, wide_c, depthwise, ky, kx, C, H, W, x_c, x_h, x_w, dilation_h, dilation_w,
                    KH, KW,
                )  # fmt: skip
    return total


@triton.jit
def separable_conv2d_fwd_kernel(
    x,  # [N, C, H, W]
    depthwise,  # [C, 1, KH, KW], contiguous
    depthwise_bias,  # [C] or None
    pointwise,  # [CO, C, 1, 1], contiguous
    bias,  # [CO] or None
    residual,  # [N, CO, HO, WO] or None
    out,  # [N, CO, HO, WO]; with SPLITS > 1 the parts [SPLITS, N, HO, WO, CO] float32 (then o_n.. are a part's strides)
    N,
    C,
    H,
    W,
    CO,
    HO,
    WO,
    x_n,
    x_c,
    x_h,
    x_w,
    r_n,
    r_c,
    r_h,
    r_w,
    o_n,
    o_c,
    o_h,
    o_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    negative_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MIDDLE: tl.constexpr,  # activation between depthwise and pointwise
    ACTIVATION: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    part = tl.program_id(2)
    steps = tl.cdiv(tl.cdiv(C, BLOCK_C), SPLITS)
    image = x + n * x_n
    rows = pointwise + tl.cast(tl.program_id(1) * BLOCK_O, tl.int64) * C + (tl.arange(0, BLOCK_O) * C)[None, :]
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for step in range(part * steps, (part + 1) * steps):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        between = depthwise_tile(
            image, depthwise, oy, ox, c, C, H, W, x_c, x_h, x_w, stride_h, stride_w, padding_h, padding_w,
            dilation_h, dilation_w, KH, KW, WIDE,
        )  # fmt: skip
        if depthwise_bias is not None:
            between += tl.load(depthwise_bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        between = activate(between, MIDDLE, negative_slope)
        weight = tl.load(rows + c[:, None], mask=(c < C)[:, None] & (o < CO)[None, :], other=0.0)  # [BC, BO]
        acc = tl.dot(between.to(weight.dtype), weight, acc, input_precision=PRECISION)
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    if SPLITS > 1:
        out += part.to(tl.int64) * N * o_n
    else:
        if bias is not None:
            acc += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            pointers = residual + n * r_n + offsets(oy, ox, o, r_c, r_h, r_w, WIDE)
            acc += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        acc = activate(acc, ACTIVATION, negative_slope)
    pointers = out + n * o_n + offsets(oy, ox, o, o_c, o_h, o_w, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def separable_conv2d_finish_kernel(
    parts,  # [SPLITS, N, HO, WO, CO] float32, contiguous
    bias,  # [CO] or None
    residual,  # [N, CO, HO, WO] or None
    out,  # [N, CO, HO, WO]
    N,
    CO,
    HO,
    WO,
    r_n,
    r_c,
    r_h,
    r_w,
    o_n,
    o_c,
    o_h,
    o_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    row = parts + n * HO * WO * CO + offsets(oy, ox, o, 1, WO * CO, CO, WIDE)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for part in tl.static_range(SPLITS):
        acc += tl.load(row + tl.cast(N, tl.int64) * HO * WO * CO * part, mask=inside, other=0.0)
    if bias is not None:
        acc += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        pointers = residual + n * r_n + offsets(oy, ox, o, r_c, r_h, r_w, WIDE)
        acc += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, negative_slope)
    pointers = out + n * o_n + offsets(oy, ox, o, o_c, o_h, o_w, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


def _strides(t: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if t is None else t.stride()


def launch_forward(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    middle: int,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """The forward with, besides, a bias and an activation between depthwise and pointwise (inverted residual)."""
    n, c, h, w = x.shape
    o, (kh, kw) = pointwise_weight.shape[0], depthwise_weight.shape[2:]
    ho = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = empty_like_format(x, (n, o, ho, wo))
    if out.numel() == 0:
        return out
    splits = _SPLITS if c >= _SPLIT_FROM else 1
    target, strides = out, out.stride()
    if splits > 1:
        target = torch.empty((splits, n, ho, wo, o), dtype=torch.float32, device=x.device)
        strides = target[0].permute(0, 3, 1, 2).stride()
    tile = _config("forward", x.dtype, o)
    with guard(x):
        separable_conv2d_fwd_kernel[
            n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer), splits
        ](
            x, depthwise_weight.contiguous(), None if depthwise_bias is None else depthwise_bias.contiguous(),
            pointwise_weight.contiguous(), None if bias is None else bias.contiguous(), residual, target,
            n, c, h, w, o, ho, wo, *x.stride(), *_strides(residual), *strides, *stride, *padding, *dilation,
            negative_slope, KH=kh, KW=kw, MIDDLE=middle, ACTIVATION=activation, SPLITS=splits,
            TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.inner, BLOCK_O=tile.outer,
            PRECISION=dot_precision(x), WIDE=needs_wide_index(x, residual, out),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if splits > 1:
            tile = _config("elementwise", x.dtype, o)
            separable_conv2d_finish_kernel[
                n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
            ](
                target, None if bias is None else bias.contiguous(), residual, out, n, o, ho, wo,
                *_strides(residual), *out.stride(), negative_slope, ACTIVATION=activation, SPLITS=splits,
                TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.outer,
                WIDE=needs_wide_index(residual, out), num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return out


def forward(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    return launch_forward(
        x, depthwise_weight, None, pointwise_weight, bias, residual, stride, padding, dilation, 0, activation,
        negative_slope,
    )  # fmt: skip


@triton.jit
def gradient_tile(
    grad,  # [CO, HO, WO], one image
    output,  # the same, or None without an activation
    oy,  # [P]
    ox,  # [P]
    o,  # [BO]
    CO,
    HO,
    WO,
    g_c,
    g_h,
    g_w,
    y_c,
    y_h,
    y_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient before the activation: [P, BO] float32, zero outside."""
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    pointers = grad + offsets(oy, ox, o, g_c, g_h, g_w, WIDE)
    g = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION != 0:
        pointers = output + offsets(oy, ox, o, y_c, y_h, y_w, WIDE)
        y = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        g = activation_gradient(g, y, ACTIVATION, negative_slope)
    return g


@triton.jit
def separable_conv2d_bwd_residual_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    out,  # [N, CO, HO, WO]
    CO,
    HO,
    WO,
    g_n,
    g_c,
    g_h,
    g_w,
    y_n,
    y_c,
    y_h,
    y_w,
    o_n,
    o_c,
    o_h,
    o_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    g = gradient_tile(
        grad + n * g_n, output + n * y_n, oy, ox, o, CO, HO, WO, g_c, g_h, g_w, y_c, y_h, y_w, negative_slope,
        ACTIVATION, WIDE,
    )  # fmt: skip
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    pointers = out + n * o_n + offsets(oy, ox, o, o_c, o_h, o_w, WIDE)
    tl.store(pointers, g.to(out.dtype.element_ty), mask=inside)


@triton.jit
def separable_conv2d_bwd_bias_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    parts,  # [PARTS, CO] float32, contiguous
    N,
    CO,
    HO,
    WO,
    g_n,
    g_c,
    g_h,
    g_w,
    y_n,
    y_c,
    y_h,
    y_w,
    negative_slope,
    per_part,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    WIDE: tl.constexpr,
):
    part = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    tiles = N * tl.cdiv(HO, TILE_H) * tl.cdiv(WO, TILE_W)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, oy, ox = tile_position(tile, HO, WO, TILE_H, TILE_W)
        acc += gradient_tile(
            grad + n * g_n, output + n * y_n, oy, ox, o, CO, HO, WO, g_c, g_h, g_w, y_c, y_h, y_w, negative_slope,
            ACTIVATION, WIDE,
        )  # fmt: skip
    tl.store(parts + part.to(tl.int64) * CO + o, tl.sum(acc, 0), mask=o < CO)


@triton.jit
def separable_conv2d_bwd_hidden_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    pointwise,  # [CO, C, 1, 1], contiguous
    hidden,  # [N, HO, WO, C], contiguous: gradient of the depthwise map
    C,
    CO,
    HO,
    WO,
    g_n,
    g_c,
    g_h,
    g_w,
    y_n,
    y_c,
    y_h,
    y_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for first in range(0, CO, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        g = gradient_tile(
            grad + n * g_n, output + n * y_n, oy, ox, o, CO, HO, WO, g_c, g_h, g_w, y_c, y_h, y_w, negative_slope,
            ACTIVATION, WIDE,
        )  # fmt: skip
        rows = pointwise + tl.cast(first, tl.int64) * C + (tl.arange(0, BLOCK_O) * C)[:, None]
        weight = tl.load(rows + c[None, :], mask=(o < CO)[:, None] & (c < C)[None, :], other=0.0)  # [BO, BC]
        acc = tl.dot(g.to(weight.dtype), weight, acc, input_precision=PRECISION)
    inside = ((oy < HO) & (ox < WO))[:, None] & (c < C)[None, :]
    pointers = hidden + n * HO * WO * C + offsets(oy, ox, c, 1, WO * C, C, WIDE)
    tl.store(pointers, acc.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def separable_conv2d_bwd_pointwise_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    x,  # [N, C, H, W]
    depthwise,  # [C, 1, KH, KW], contiguous
    parts,  # [PARTS, CO, C] float32, contiguous
    N,
    C,
    H,
    W,
    CO,
    HO,
    WO,
    g_n,
    g_c,
    g_h,
    g_w,
    y_n,
    y_c,
    y_h,
    y_w,
    x_n,
    x_c,
    x_h,
    x_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    negative_slope,
    per_part,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    tiles = N * tl.cdiv(HO, TILE_H) * tl.cdiv(WO, TILE_W)
    acc = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, oy, ox = tile_position(tile, HO, WO, TILE_H, TILE_W)
        between = depthwise_tile(
            x + n * x_n, depthwise, oy, ox, c, C, H, W, x_c, x_h, x_w, stride_h, stride_w, padding_h, padding_w,
            dilation_h, dilation_w, KH, KW, WIDE,
        )  # fmt: skip
        g = gradient_tile(
            grad + n * g_n, output + n * y_n, oy, ox, o, CO, HO, WO, g_c, g_h, g_w, y_c, y_h, y_w, negative_slope,
            ACTIVATION, WIDE,
        )  # fmt: skip
        # pixels past the map count nothing, whatever the depthwise gives there: their gradient is zero
        dtype = x.dtype.element_ty
        acc = tl.dot(tl.trans(g.to(dtype)), between.to(dtype), acc, input_precision=PRECISION)
    pointers = parts + (part.to(tl.int64) * CO + o)[:, None] * C + c[None, :]
    tl.store(pointers, acc, mask=(o < CO)[:, None] & (c < C)[None, :])


@triton.jit
def separable_conv2d_bwd_input_kernel(
    hidden,  # [N, HO, WO, C], contiguous
    depthwise,  # [C, 1, KH, KW], contiguous
    grad_x,  # [N, C, H, W]
    C,
    H,
    W,
    HO,
    WO,
    x_n,
    x_c,
    x_h,
    x_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, iy, ix = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = hidden + n * HO * WO * C
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for tap in range(KH * KW):
        # the output pixel that read this input pixel through this tap, if there is one
        y = iy + padding_h - tap // KW * dilation_h
        z = ix + padding_w - tap % KW * dilation_w
        oy = y // stride_h
        ox = z // stride_w
        read = (y >= 0) & (z >= 0) & (y % stride_h == 0) & (z % stride_w == 0) & (oy < HO) & (ox < WO)
        pointers = image + offsets(oy, ox, c, 1, WO * C, C, WIDE)
        g = tl.load(pointers, mask=read[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        weight = tl.load(depthwise + c * (KH * KW) + tap, mask=c < C, other=0.0).to(tl.float32)
        acc += g * weight[None, :]
    inside = ((iy < H) & (ix < W))[:, None] & (c < C)[None, :]
    pointers = grad_x + n * x_n + offsets(iy, ix, c, x_c, x_h, x_w, WIDE)
    tl.store(pointers, acc.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def separable_conv2d_bwd_depthwise_kernel(
    hidden,  # [N, HO, WO, C], contiguous
    x,  # [N, C, H, W]
    parts,  # [PARTS, C, KH, KW] float32, contiguous
    N,
    C,
    H,
    W,
    HO,
    WO,
    x_n,
    x_c,
    x_h,
    x_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    per_part,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,  # taps of one kernel row that a program sums at once
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WIDE: tl.constexpr,
):
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    groups = tl.cdiv(KW, TAPS)
    ky = tl.program_id(2) // groups
    kx = tl.program_id(2) % groups * TAPS + tl.arange(0, TAPS)
    tiles = N * tl.cdiv(HO, TILE_H) * tl.cdiv(WO, TILE_W)
    acc = tl.zeros((TAPS, TILE_H * TILE_W, BLOCK_C), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, oy, ox = tile_position(tile, HO, WO, TILE_H, TILE_W)
        inside = (oy < HO) & (ox < WO)
        pointers = hidden + n * HO * WO * C + offsets(oy, ox, c, 1, WO * C, C, WIDE)
        g = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        y = oy * stride_h - padding_h + ky * dilation_h  # [P]
        z = (ox * stride_w - padding_w)[None, :] + (kx * dilation_w)[:, None]  # [TAPS, P]
        read = ((y >= 0) & (y < H) & inside)[None, :] & (z >= 0) & (z < W) & (kx < KW)[:, None]
        offset = (widen(y, WIDE) * x_h)[None, :] + widen(z, WIDE) * x_w
        pointers = x + n * x_n + offset[:, :, None] + (widen(c, WIDE) * x_c)[None, None, :]
        value = tl.load(pointers, mask=read[:, :, None] & (c < C)[None, None, :], other=0.0).to(tl.float32)
        acc += value * g[None, :, :]
    total = tl.sum(acc, 1)  # [TAPS, BC]
    pointers = parts + (part.to(tl.int64) * C + c)[None, :] * (KH * KW) + (ky * KW + kx)[:, None]
    tl.store(pointers, total, mask=(kx < KW)[:, None] & (c < C)[None, :])


def _parts(n: int, height: int, width: int, tile: Tile) -> tuple[int, int]:
    """How many parts a sum over all pixels is cut into, and the tiles of each."""
    tiles = n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width)
    each = triton.cdiv(tiles, _MOST_PARTS)
    return triton.cdiv(tiles, each), each


def backward(
    grad: Tensor,
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    o, ho, wo = output.shape[1:]
    kh, kw = depthwise_weight.shape[2:]
    depthwise, pointwise = depthwise_weight.contiguous(), pointwise_weight.contiguous()
    window = (*stride, *padding, *dilation)
    grad_x = empty_like_format(x, x.shape) if output_mask[0] else x.new_empty(0)
    grad_depthwise = x.new_empty(depthwise_weight.shape if output_mask[1] else 0)
    grad_pointwise = x.new_empty(pointwise_weight.shape if output_mask[2] else 0)
    grad_bias = x.new_empty(o if output_mask[3] else 0)
    grad_residual = empty_like_format(output, output.shape) if output_mask[4] else x.new_empty(0)
    results = (grad_x, grad_depthwise, grad_pointwise, grad_bias, grad_residual)
    if n == 0:
        for result in results:
            result.zero_()
        return results

    with guard(x):
        if output_mask[4]:
            tile = _config("elementwise", x.dtype, o)
            separable_conv2d_bwd_residual_kernel[
                n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
            ](
                grad, output, grad_residual, o, ho, wo, *grad.stride(), *output.stride(), *grad_residual.stride(),
                negative_slope, ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.outer,
                WIDE=needs_wide_index(grad, output, grad_residual), num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            # the gradient before the activation is at hand now
            grad, activation = grad_residual, 0
        wide = needs_wide_index(grad, output, x)

        if output_mask[3]:
            tile = _config("elementwise", x.dtype, o)
            count, each = _parts(n, ho, wo, tile)
            parts = torch.empty((count, o), dtype=torch.float32, device=x.device)
            separable_conv2d_bwd_bias_kernel[count, triton.cdiv(o, tile.outer)](
                grad, output, parts, n, o, ho, wo, *grad.stride(), *output.stride(), negative_slope, each,
                ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.outer, WIDE=wide,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            sum_parts(parts, grad_bias)

        if output_mask[2]:
            tile = _config("pointwise", x.dtype, o)
            count, each = _parts(n, ho, wo, tile)
            parts = torch.empty((count, o, c), dtype=torch.float32, device=x.device)
            separable_conv2d_bwd_pointwise_kernel[count, triton.cdiv(c, tile.inner), triton.cdiv(o, tile.outer)](
                grad, output, x, depthwise, parts, n, c, h, w, o, ho, wo, *grad.stride(), *output.stride(),
                *x.stride(), *window, negative_slope, each, KH=kh, KW=kw, ACTIVATION=activation, TILE_H=tile.height,
                TILE_W=tile.width, BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(x), WIDE=wide,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            sum_parts(parts, grad_pointwise)

        if output_mask[0] or output_mask[1]:
            hidden = torch.empty((n, ho, wo, c), dtype=x.dtype, device=x.device)
            wide = needs_wide_index(grad, output, x, hidden)
            tile = _config("hidden", x.dtype, c)
            separable_conv2d_bwd_hidden_kernel[
                n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(c, tile.outer)
            ](
                grad, output, pointwise, hidden, c, o, ho, wo, *grad.stride(), *output.stride(), negative_slope,
                ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.inner, BLOCK_C=tile.outer,
                PRECISION=dot_precision(x), WIDE=wide, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if output_mask[0]:
            tile = _config("input", x.dtype, c)
            separable_conv2d_bwd_input_kernel[
                n * triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), triton.cdiv(c, tile.outer)
            ](
                hidden, depthwise, grad_x, c, h, w, ho, wo, *grad_x.stride(), *window, KH=kh, KW=kw,
                TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer, WIDE=needs_wide_index(hidden, grad_x),
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if output_mask[1]:
            tile = _config("depthwise", x.dtype, c)
            count, each = _parts(n, ho, wo, tile)
            taps = min(tile.inner, triton.next_power_of_2(kw))
            parts = torch.empty((count, c, kh, kw), dtype=torch.float32, device=x.device)
            separable_conv2d_bwd_depthwise_kernel[count, triton.cdiv(c, tile.outer), kh * triton.cdiv(kw, taps)](
                hidden, x, parts, n, c, h, w, ho, wo, *x.stride(), *window, each, KH=kh, KW=kw, TAPS=taps,
                TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer, WIDE=wide, num_warps=tile.warps,
                num_stages=tile.stages,
            )  # fmt: skip
            sum_parts(parts, grad_depthwise)
    return results
