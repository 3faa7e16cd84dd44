"""separable_conv2d - depthwise k x k -> pointwise GEMM -> + bias -> + residual -> activation, in one launch.

Replaces: two F.conv2d, an add and an activation; the depthwise map is never stored (the backward computes it again)
Shapes:   x [N, C, H, W], depthwise [C, 1, KH, KW], pointwise [CO, C, 1, 1] -> out [N, CO, HO, WO]; any strides in,
          out in x's memory format; any kernel size, stride, padding and dilation
Traffic:  minimum (N*C*H*W + N*CO*HO*WO [+ residual] + C*KH*KW + C*CO) * sizeof(T); eager moves 2*N*C*HO*WO*sizeof(T)
          more, and 2*N*CO*HO*WO*sizeof(T) more for each of add and activation
Bound:    memory, in float16, up to C = CO = 96; not timed on its own yet
Launch:   forward grid (N * pixel tiles, CO blocks, C splits); tiles.csv: rows by (pass, dtype class, CO or C block).
          Where that is less than the device can run at once, C is split up to eight ways: float32 parts, then a sum
Numerics: float32 taps and accumulation; the depthwise value is rounded to T for the product, as eager stores it.
          float32 products are exact unless torch allows tf32. Sums are cut at places that follow from the shape and
          the device, and added in order, no atomics: two runs give the same bits
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
    MOST_SPLITS,
    activate,
    aligned,
    alignment,
    dot_precision,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    product,
    splits_of,
    strides_of,
    summed,
    tap_strides,
    tile_position,
)
from ._separable import depthwise_tile
from ._separable_backward import backward
from ._tiles import choose

__all__ = ["backward", "forward"]


@kernel
def separable_conv2d_fwd_kernel(
    x,  # [N, C, H, W]
    depthwise,  # [C, 1, KH, KW], or None: pointwise alone
    depthwise_bias,  # [C] or None
    pointwise,  # [CO, C, 1, 1], contiguous
    bias,  # [CO] or None
    residual,  # [N, CO, HO, WO] or None
    parts,  # [splits, N, HO, WO, CO] float32, contiguous; empty where splits is 1
    out,  # [N, CO, HO, WO]; not written where splits is more than 1
    N,
    C,
    H,
    W,
    CO,
    HO,
    WO,
    x_n, x_c, x_h, x_w,
    d_c, d_y, d_x,
    r_n, r_c, r_h, r_w,
    o_n, o_c, o_h, o_w,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
    splits,
    negative_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MIDDLE: tl.constexpr,  # activation between depthwise and pointwise
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    d_strides = (d_c, 0, d_y, d_x)
    stride = (stride_h, stride_w)
    padding = (padding_h, padding_w)
    dilation = (dilation_h, dilation_w)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C = C // ALIGN * ALIGN
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    part = tl.program_id(2)
    steps = tl.cdiv(tl.cdiv(C, BLOCK_C), splits)
    rows = pointwise + tl.cast(tl.program_id(1) * BLOCK_O, tl.int64) * C + (tl.arange(0, BLOCK_O) * C)[None, :]
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for step in range(part * steps, (part + 1) * steps):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        between = depthwise_tile(
            x, depthwise, n, oy, ox, c, C, H, W, x_strides, d_strides, stride, padding, dilation,
            KH, KW, WIDE,
        )  # fmt: skip
        if depthwise_bias is not None:
            between += tl.load(depthwise_bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        between = activate(between, MIDDLE, negative_slope)
        weight = tl.load(rows + c[:, None], mask=(c < C)[:, None] & (o < CO)[None, :], other=0.0)  # [BC, BO]
        acc = product(between.to(weight.dtype), weight, acc, PRECISION)
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    # not a constant, or a map large enough for one part would be another kernel
    if splits > 1:
        image = parts + (part.to(tl.int64) * N + n) * HO * WO * CO
        tl.store(image + offsets(oy, ox, o, (0, 1, WO * CO, CO), WIDE), acc, mask=inside)
    else:
        if bias is not None:
            acc += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
        if residual is not None:
            pointers = residual + n * r_strides[0] + offsets(oy, ox, o, r_strides, WIDE)
            acc += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        acc = activate(acc, ACTIVATION, negative_slope)
        pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
        tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


@kernel
def separable_conv2d_finish_kernel(
    parts,  # [splits, N, HO, WO, CO] float32, contiguous
    bias,  # [CO] or None
    residual,  # [N, CO, HO, WO] or None
    out,  # [N, CO, HO, WO]
    N,
    CO,
    HO,
    WO,
    r_n, r_c, r_h, r_w,
    o_n, o_c, o_h, o_w,
    splits,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MOST: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    index = n * HO * WO * CO + offsets(oy, ox, o, (0, 1, WO * CO, CO), WIDE)
    acc = summed(parts, tl.cast(N, tl.int64) * HO * WO * CO, index, inside, splits, MOST)
    if bias is not None:
        acc += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        pointers = residual + n * r_strides[0] + offsets(oy, ox, o, r_strides, WIDE)
        acc += tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, negative_slope)
    pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


def launch_forward(
    x: Tensor,
    depthwise_weight: Tensor | None,
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
    """The forward with a bias and an activation `middle` behind the depthwise, which may be missing altogether."""
    n, c, h, w = x.shape
    o, (kh, kw) = pointwise_weight.shape[0], (1, 1) if depthwise_weight is None else depthwise_weight.shape[2:]
    ho = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = empty_like_format(x, (n, o, ho, wo))
    if out.numel() == 0:
        return out
    tile = choose("separable", "forward", x.dtype, x, o, max(dilation))
    grid = n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
    splits = splits_of(grid[0] * grid[1], triton.cdiv(c, tile.inner), x)
    parts = torch.empty((splits, n, ho, wo, o) if splits > 1 else 0, dtype=torch.float32, device=x.device)
    depthwise_bias, bias = (b if b is None else b.contiguous() for b in (depthwise_bias, bias))
    align, wide = alignment(x, residual, out), needs_wide_index(x, residual, out)
    with guard(x):
        separable_conv2d_fwd_kernel[grid[0], grid[1], splits](
            x, depthwise_weight, depthwise_bias, pointwise_weight.contiguous(), bias, residual, parts, out,
            n, c, h, w, o, ho, wo, *x.stride(), *tap_strides(depthwise_weight),
            *strides_of(residual), *out.stride(), *stride, *padding, *dilation, splits, negative_slope,
            KH=kh, KW=kw, MIDDLE=middle, ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width,
            BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(x), ALIGN=align,
            WIDE=wide, **tile.options(),
        )  # fmt: skip
        if splits > 1:
            tile = choose("separable", "finish", x.dtype, x, o)
            separable_conv2d_finish_kernel[
                n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
            ](
                parts, bias, residual, out, n, o, ho, wo, *strides_of(residual), *out.stride(), splits,
                negative_slope, ACTIVATION=activation, MOST=MOST_SPLITS, TILE_H=tile.height, TILE_W=tile.width,
                BLOCK_O=tile.outer, ALIGN=align, WIDE=wide, **tile.options(),
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
