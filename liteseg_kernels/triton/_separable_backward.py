"""The backward of separable_conv2d; see separable_conv2d.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import empty_like_format
from ._common import (
    aligned,
    alignment,
    dot_precision,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    product,
    sum_parts,
    tap_strides,
    tile_position,
    widen,
)
from ._separable import depthwise_tile, gradient_tile
from ._tiles import Tile, choose

# most float32 parts of a weight gradient
_MOST_PARTS = 64


@kernel
def separable_conv2d_bwd_residual_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    out,  # [N, CO, HO, WO]
    CO,
    HO,
    WO,
    g_n, g_c, g_h, g_w,
    y_n, y_c, y_h, y_w,
    o_n, o_c, o_h, o_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    y_strides = aligned(y_n, y_c, y_h, y_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    g = gradient_tile(
        grad, output, n, oy, ox, o, CO, HO, WO, g_strides, y_strides, negative_slope, ACTIVATION, WIDE
    )  # fmt: skip
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
    tl.store(pointers, g.to(out.dtype.element_ty), mask=inside)


@kernel
def separable_conv2d_bwd_bias_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    parts,  # [PARTS, CO] float32, contiguous
    N,
    CO,
    HO,
    WO,
    g_n, g_c, g_h, g_w,
    y_n, y_c, y_h, y_w,
    negative_slope,
    per_part,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    y_strides = aligned(y_n, y_c, y_h, y_w, ALIGN)
    CO = CO // ALIGN * ALIGN
    part = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    tiles = N * tl.cdiv(HO, TILE_H) * tl.cdiv(WO, TILE_W)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, oy, ox = tile_position(tile, HO, WO, TILE_H, TILE_W)
        acc += gradient_tile(
            grad, output, n, oy, ox, o, CO, HO, WO, g_strides, y_strides, negative_slope, ACTIVATION, WIDE
        )  # fmt: skip
    tl.store(parts + part.to(tl.int64) * CO + o, tl.sum(acc, 0), mask=o < CO)


@kernel
def separable_conv2d_bwd_hidden_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    pointwise,  # [CO, C, 1, 1], contiguous
    hidden,  # [N, HO, WO, C], contiguous: gradient of the depthwise map
    C,
    CO,
    HO,
    WO,
    g_n, g_c, g_h, g_w,
    y_n, y_c, y_h, y_w,
    negative_slope,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    y_strides = aligned(y_n, y_c, y_h, y_w, ALIGN)
    C = C // ALIGN * ALIGN
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for first in range(0, CO, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        g = gradient_tile(
            grad, output, n, oy, ox, o, CO, HO, WO, g_strides, y_strides, negative_slope, ACTIVATION, WIDE
        )  # fmt: skip
        rows = pointwise + tl.cast(first, tl.int64) * C + (tl.arange(0, BLOCK_O) * C)[:, None]
        weight = tl.load(rows + c[None, :], mask=(o < CO)[:, None] & (c < C)[None, :], other=0.0)  # [BO, BC]
        acc = product(g.to(weight.dtype), weight, acc, PRECISION)
    inside = ((oy < HO) & (ox < WO))[:, None] & (c < C)[None, :]
    pointers = hidden + n * HO * WO * C + offsets(oy, ox, c, (0, 1, WO * C, C), WIDE)
    tl.store(pointers, acc.to(hidden.dtype.element_ty), mask=inside)


@kernel
def separable_conv2d_bwd_pointwise_kernel(
    grad,  # [N, CO, HO, WO]
    output,  # [N, CO, HO, WO]
    x,  # [N, C, H, W]
    depthwise,  # [C, 1, KH, KW]
    parts,  # [PARTS, CO, C] float32, contiguous
    N,
    C,
    H,
    W,
    CO,
    HO,
    WO,
    g_n, g_c, g_h, g_w,
    y_n, y_c, y_h, y_w,
    x_n, x_c, x_h, x_w,
    d_c, d_y, d_x,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
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
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    d_strides = (d_c, 0, d_y, d_x)
    stride = (stride_h, stride_w)
    padding = (padding_h, padding_w)
    dilation = (dilation_h, dilation_w)
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    y_strides = aligned(y_n, y_c, y_h, y_w, ALIGN)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    C = C // ALIGN * ALIGN
    CO = CO // ALIGN * ALIGN
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    tiles = N * tl.cdiv(HO, TILE_H) * tl.cdiv(WO, TILE_W)
    acc = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, oy, ox = tile_position(tile, HO, WO, TILE_H, TILE_W)
        between = depthwise_tile(
            x, depthwise, n, oy, ox, c, C, H, W, x_strides, d_strides, stride, padding, dilation, KH, KW, WIDE
        )  # fmt: skip
        g = gradient_tile(
            grad, output, n, oy, ox, o, CO, HO, WO, g_strides, y_strides, negative_slope, ACTIVATION, WIDE
        )  # fmt: skip
        # their gradient is zero, but zero times infinity is not
        between = tl.where(((oy < HO) & (ox < WO))[:, None], between, 0.0)
        dtype = x.dtype.element_ty
        acc = product(tl.trans(g.to(dtype)), between.to(dtype), acc, PRECISION)
    pointers = parts + (part.to(tl.int64) * CO + o)[:, None] * C + c[None, :]
    tl.store(pointers, acc, mask=(o < CO)[:, None] & (c < C)[None, :])


@kernel
def separable_conv2d_bwd_input_kernel(
    hidden,  # [N, HO, WO, C], contiguous
    depthwise,  # [C, 1, KH, KW]
    grad_x,  # [N, C, H, W]
    C,
    H,
    W,
    HO,
    WO,
    x_n, x_c, x_h, x_w,
    d_c, d_y, d_x,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    d_strides = (d_c, 0, d_y, d_x)
    stride = (stride_h, stride_w)
    padding = (padding_h, padding_w)
    dilation = (dilation_h, dilation_w)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    C = C // ALIGN * ALIGN
    n, iy, ix = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = hidden + n * HO * WO * C
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for tap in range(KH * KW):
        # the output pixel that read this input pixel through this tap, if there is one
        y = iy + padding[0] - tap // KW * dilation[0]
        z = ix + padding[1] - tap % KW * dilation[1]
        oy = y // stride[0]
        ox = z // stride[1]
        read = (y >= 0) & (z >= 0) & (y % stride[0] == 0) & (z % stride[1] == 0) & (oy < HO) & (ox < WO)
        pointers = image + offsets(oy, ox, c, (0, 1, WO * C, C), WIDE)
        g = tl.load(pointers, mask=read[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        pointers = depthwise + c * d_strides[0] + tap // KW * d_strides[2] + tap % KW * d_strides[3]
        weight = tl.load(pointers, mask=c < C, other=0.0).to(tl.float32)
        acc += g * weight[None, :]
    inside = ((iy < H) & (ix < W))[:, None] & (c < C)[None, :]
    pointers = grad_x + n * x_strides[0] + offsets(iy, ix, c, x_strides, WIDE)
    tl.store(pointers, acc.to(grad_x.dtype.element_ty), mask=inside)


@kernel
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
    x_n, x_c, x_h, x_w,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
    per_part,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,  # taps of one kernel row that a program sums at once
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    stride = (stride_h, stride_w)
    padding = (padding_h, padding_w)
    dilation = (dilation_h, dilation_w)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    C = C // ALIGN * ALIGN
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
        pointers = hidden + n * HO * WO * C + offsets(oy, ox, c, (0, 1, WO * C, C), WIDE)
        g = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        y = oy * stride[0] - padding[0] + ky * dilation[0]  # [P]
        z = (ox * stride[1] - padding[1])[None, :] + (kx * dilation[1])[:, None]  # [TAPS, P]
        read = ((y >= 0) & (y < H) & inside)[None, :] & (z >= 0) & (z < W) & (kx < KW)[:, None]
        offset = (widen(y, WIDE) * x_strides[2])[None, :] + widen(z, WIDE) * x_strides[3]
        pointers = x + n * x_strides[0] + offset[:, :, None] + (widen(c, WIDE) * x_strides[1])[None, None, :]
        value = tl.load(pointers, mask=read[:, :, None] & (c < C)[None, None, :], other=0.0).to(tl.float32)
        acc += value * g[None, :, :]
    total = tl.sum(acc, 1)  # [TAPS, BC]
    pointers = parts + (part.to(tl.int64) * C + c)[None, :] * (KH * KW) + (ky * KW + kx)[:, None]
    tl.store(pointers, total, mask=(kx < KW)[:, None] & (c < C)[None, :])


def split_sum(n: int, height: int, width: int, tile: Tile) -> tuple[int, int]:
    """How many parts a sum over all pixels is cut into, and the tiles of each."""
    tiles = n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width)
    each = triton.cdiv(tiles, _MOST_PARTS)
    return triton.cdiv(tiles, each), each


def bias_gradient(grad: Tensor, output: Tensor, out: Tensor, activation: int, negative_slope: float) -> Tensor:
    """out [CO] = sum over images and pixels of the gradient before the activation, from the activation's output."""
    n, o, ho, wo = grad.shape
    tile = choose("separable", "elementwise", grad.dtype, grad, o)
    count, each = split_sum(n, ho, wo, tile)
    parts = torch.empty((count, o), dtype=torch.float32, device=grad.device)
    separable_conv2d_bwd_bias_kernel[count, triton.cdiv(o, tile.outer)](
        grad, output, parts, n, o, ho, wo, *grad.stride(), *output.stride(), negative_slope, each,
        ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.outer,
        ALIGN=alignment(grad, output), WIDE=needs_wide_index(grad, output), **tile.options(),
    )  # fmt: skip
    return sum_parts(parts, out)


def pre_activation_gradient(
    grad: Tensor, output: Tensor, out: Tensor, activation: int, negative_slope: float
) -> Tensor:
    """out [N, CO, HO, WO] = the gradient before the activation, from the activation's output."""
    n, o, ho, wo = grad.shape
    tile = choose("separable", "elementwise", grad.dtype, grad, o)
    separable_conv2d_bwd_residual_kernel[
        n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
    ](
        grad, output, out, o, ho, wo, *grad.stride(), *output.stride(), *out.stride(), negative_slope,
        ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.outer,
        ALIGN=alignment(grad, output, out), WIDE=needs_wide_index(grad, output, out), **tile.options(),
    )  # fmt: skip
    return out


def depthwise_input_gradient(
    hidden: Tensor,
    depthwise: Tensor,
    out: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """out [N, C, H, W] from the gradient of the depthwise map, `hidden` [N, HO, WO, C] (contiguous)."""
    n, c, h, w = out.shape
    ho, wo = hidden.shape[1:3]
    kh, kw = depthwise.shape[2:]
    tile = choose("separable", "input", out.dtype, out, c, max(dilation))
    separable_conv2d_bwd_input_kernel[
        n * triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), triton.cdiv(c, tile.outer)
    ](
        hidden, depthwise, out, c, h, w, ho, wo, *out.stride(), *tap_strides(depthwise), *stride, *padding, *dilation,
        KH=kh, KW=kw, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
        ALIGN=alignment(out), WIDE=needs_wide_index(hidden, out), **tile.options(),
    )  # fmt: skip
    return out


def depthwise_weight_gradient(
    hidden: Tensor,
    x: Tensor,
    depthwise: Tensor,
    out: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """out [C, 1, KH, KW] from the gradient of the depthwise map, `hidden` [N, HO, WO, C] (contiguous)."""
    n, c, h, w = x.shape
    ho, wo = hidden.shape[1:3]
    kh, kw = depthwise.shape[2:]
    tile = choose("separable", "depthwise", x.dtype, x, c, max(dilation))
    count, each = split_sum(n, ho, wo, tile)
    taps = min(tile.inner, triton.next_power_of_2(kw))
    parts = torch.empty((count, c, kh, kw), dtype=torch.float32, device=x.device)
    separable_conv2d_bwd_depthwise_kernel[count, triton.cdiv(c, tile.outer), kh * triton.cdiv(kw, taps)](
        hidden, x, parts, n, c, h, w, ho, wo, *x.stride(), *stride, *padding, *dilation,
        each, KH=kh, KW=kw, TAPS=taps, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
        ALIGN=alignment(x), WIDE=needs_wide_index(hidden, x), **tile.options(),
    )  # fmt: skip
    return sum_parts(parts, out)


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
    depthwise, pointwise = depthwise_weight, pointwise_weight.contiguous()
    window = (*tap_strides(depthwise), *stride, *padding, *dilation)
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
            pre_activation_gradient(grad, output, grad_residual, activation, negative_slope)
            # the gradient before the activation is at hand now
            grad, activation = grad_residual, 0
        align, wide = alignment(grad, output, x), needs_wide_index(grad, output, x)

        if output_mask[3]:
            bias_gradient(grad, output, grad_bias, activation, negative_slope)

        if output_mask[2]:
            tile = choose("separable", "pointwise", x.dtype, x, o, max(dilation))
            count, each = split_sum(n, ho, wo, tile)
            parts = torch.empty((count, o, c), dtype=torch.float32, device=x.device)
            separable_conv2d_bwd_pointwise_kernel[count, triton.cdiv(c, tile.inner), triton.cdiv(o, tile.outer)](
                grad, output, x, depthwise, parts, n, c, h, w, o, ho, wo, *grad.stride(), *output.stride(),
                *x.stride(), *window, negative_slope, each, KH=kh, KW=kw, ACTIVATION=activation, TILE_H=tile.height,
                TILE_W=tile.width, BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(x), ALIGN=align,
                WIDE=wide, **tile.options(),
            )  # fmt: skip
            sum_parts(parts, grad_pointwise)

        if output_mask[0] or output_mask[1]:
            hidden = torch.empty((n, ho, wo, c), dtype=x.dtype, device=x.device)
            wide = needs_wide_index(grad, output, x, hidden)
            tile = choose("separable", "hidden", x.dtype, x, c)
            separable_conv2d_bwd_hidden_kernel[
                n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(c, tile.outer)
            ](
                grad, output, pointwise, hidden, c, o, ho, wo, *grad.stride(), *output.stride(), negative_slope,
                ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_O=tile.inner, BLOCK_C=tile.outer,
                PRECISION=dot_precision(x), ALIGN=align, WIDE=wide, **tile.options(),
            )  # fmt: skip
        if output_mask[0]:
            depthwise_input_gradient(hidden, depthwise, grad_x, stride, padding, dilation)
        if output_mask[1]:
            depthwise_weight_gradient(hidden, x, depthwise, grad_depthwise, stride, padding, dilation)
    return results
