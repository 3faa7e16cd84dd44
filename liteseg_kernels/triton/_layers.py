"""Single layers that the composed backwards are made of: pointwise (grouped) and depthwise convolution.

pointwise   [N, C, H, W] x [CO, C / G, 1, 1] -> [N, CO, H, W], and with the weight transposed the gradient of its input;
            the gradient of the weight as at most 64 float32 parts, summed in order
depthwise   [N, C, H, W] x [C, 1, KH, KW] -> [N, C, HO, WO]; its gradients: _separable_backward.py

The input may be a gradient that still has to pass an activation (`gate`: that activation's output), and so may the
output. Maps that only decide about activations are kept in float32: rounded to float16, values next to a kink would
fall on its other side. Numerics as separable_conv2d's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    activate,
    activation_gradient,
    aligned,
    alignment,
    dot_precision,
    kernel,
    needs_wide_index,
    offsets,
    product,
    strides_of,
    sum_parts,
    tap_strides,
    tile_position,
)
from ._separable import depthwise_tile, gradient_tile
from ._separable_backward import split_sum
from ._tiles import choose


@kernel
def pointwise_kernel(
    x,  # [N, C, H, W]
    gate,  # [N, C, H, W] or None: output of the activation that x's gradient has yet to pass
    weight,  # [GROUPS, CO / GROUPS, C / GROUPS], any strides
    bias,  # [CO] or None
    residual,  # [N, CO, H, W] or None
    out_gate,  # [N, CO, H, W] or None: the same for the result
    out,  # [N, CO, H, W]
    each_in,
    each_out,
    H,
    W,
    x_n, x_c, x_h, x_w,
    g_n, g_c, g_h, g_w,
    w_g, w_o, w_i,
    r_n, r_c, r_h, r_w,
    h_n, h_c, h_h, h_w,
    o_n, o_c, o_h, o_w,
    negative_slope,
    GATE: tl.constexpr,  # activation of gate and out_gate
    ACTIVATION: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    h_strides = aligned(h_n, h_c, h_h, h_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    each_in = each_in // ALIGN * ALIGN
    each_out = each_out // ALIGN * ALIGN
    n, y, z = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    blocks = tl.cdiv(each_out, BLOCK_O)
    group = tl.program_id(1) // blocks
    o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    rows = weight + group.to(tl.int64) * w_g + (o * w_o)[None, :]
    first = group * each_in
    inside = (y < H) & (z < W)
    image = x + n * x_strides[0]
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for step in range(0, each_in, BLOCK_C):
        c = step + tl.arange(0, BLOCK_C)
        if gate is None:
            mask = inside[:, None] & (c < each_in)[None, :]
            value = tl.load(image + offsets(y, z, first + c, x_strides, WIDE), mask=mask, other=0.0).to(tl.float32)
        else:
            value = gradient_tile(
                x, gate, n, y, z, first + c, first + each_in, H, W, x_strides, g_strides, negative_slope, GATE, WIDE
            )  # fmt: skip
        mask = (c < each_in)[:, None] & (o < each_out)[None, :]
        w = tl.load(rows + (c * w_i)[:, None], mask=mask, other=0.0)  # [BC, BO]
        acc = product(value.to(w.dtype), w, acc, PRECISION)
    mask = inside[:, None] & (o < each_out)[None, :]
    o += group * each_out
    if bias is not None:
        acc += tl.load(bias + o, mask=o < (group + 1) * each_out, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        pointers = residual + n * r_strides[0] + offsets(y, z, o, r_strides, WIDE)
        acc += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, negative_slope)
    if out_gate is not None:
        pointers = out_gate + n * h_strides[0] + offsets(y, z, o, h_strides, WIDE)
        acc = activation_gradient(acc, tl.load(pointers, mask=mask, other=0.0).to(tl.float32), GATE, negative_slope)
    pointers = out + n * o_strides[0] + offsets(y, z, o, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=mask)


@kernel
def pointwise_bwd_weight_kernel(
    grad,  # [N, CO, H, W]
    gate,  # [N, CO, H, W]
    x,  # [N, C, H, W]
    parts,  # [PARTS, CO, C / GROUPS] float32, contiguous
    N,
    each_in,
    each_out,
    H,
    W,
    g_n, g_c, g_h, g_w,
    y_n, y_c, y_h, y_w,
    x_n, x_c, x_h, x_w,
    negative_slope,
    per_part,
    GATE: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    y_strides = aligned(y_n, y_c, y_h, y_w, ALIGN)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    each_in = each_in // ALIGN * ALIGN
    each_out = each_out // ALIGN * ALIGN
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    blocks = tl.cdiv(each_out, BLOCK_O)
    group = tl.program_id(2) // blocks
    o = group * each_out + tl.program_id(2) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    last = (group + 1) * each_out
    tiles = N * tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W)
    acc = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for tile in range(part * per_part, tl.minimum((part + 1) * per_part, tiles)):
        n, y, z = tile_position(tile, H, W, TILE_H, TILE_W)
        g = gradient_tile(grad, gate, n, y, z, o, last, H, W, g_strides, y_strides, negative_slope, GATE, WIDE)
        pointers = x + n * x_strides[0] + offsets(y, z, group * each_in + c, x_strides, WIDE)
        value = tl.load(pointers, mask=((y < H) & (z < W))[:, None] & (c < each_in)[None, :], other=0.0)
        dtype = grad.dtype.element_ty
        acc = product(tl.trans(g.to(dtype)), value.to(dtype), acc, PRECISION)
    pointers = parts + (part.to(tl.int64) * GROUPS * each_out + o)[:, None] * each_in + c[None, :]
    tl.store(pointers, acc, mask=(o < last)[:, None] & (c < each_in)[None, :])


@kernel
def depthwise_kernel(
    x,  # [N, C, H, W]
    weight,  # [C, 1, KH, KW]
    bias,  # [C] or None
    out,  # [N, C, HO, WO]
    C,
    H,
    W,
    HO,
    WO,
    x_n, x_c, x_h, x_w,
    d_c, d_y, d_x,
    o_n, o_c, o_h, o_w,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
    negative_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ACTIVATION: tl.constexpr,
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
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C = C // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = depthwise_tile(
        x, weight, n, oy, ox, c, C, H, W, x_strides, d_strides, stride, padding, dilation, KH, KW, WIDE
    )  # fmt: skip
    if bias is not None:
        acc += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, negative_slope)
    mask = ((oy < HO) & (ox < WO))[:, None] & (c < C)[None, :]
    tl.store(out + n * o_strides[0] + offsets(oy, ox, c, o_strides, WIDE), acc.to(out.dtype.element_ty), mask=mask)


def nhwc(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A fresh map of `shape` (N, C, H, W), channels last, on x's device."""
    n, c, h, w = shape
    return torch.empty((n, h, w, c), dtype=dtype or x.dtype, device=x.device).permute(0, 3, 1, 2)


def _launch_pointwise(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    w_strides: tuple[int, int, int],
    bias: Tensor | None,
    residual: Tensor | None,
    out_gate: Tensor | None,
    out: Tensor,
    groups: int,
    gate_activation: int,
    activation: int,
    negative_slope: float,
) -> Tensor:
    n, c, h, w = x.shape
    each_in, each_out = c // groups, out.shape[1] // groups
    tile = choose("layers", "product", weight.dtype, x, each_out)
    pointwise_kernel[
        n * triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), groups * triton.cdiv(each_out, tile.outer)
    ](
        x, gate, weight, bias, residual, out_gate, out, each_in, each_out, h, w, *x.stride(),
        *strides_of(gate), *w_strides, *strides_of(residual), *strides_of(out_gate), *out.stride(), negative_slope,
        GATE=gate_activation, ACTIVATION=activation, GROUPS=groups, TILE_H=tile.height, TILE_W=tile.width,
        BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(weight),
        ALIGN=math.gcd(alignment(x, gate, residual, out_gate, out), each_in, each_out),
        WIDE=needs_wide_index(x, gate, residual, out_gate, out), **tile.options(),
    )  # fmt: skip
    return out


def pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, groups: int, activation: int, negative_slope: float
) -> Tensor:
    """out [N, CO, H, W] = activation(weight [CO, C / groups, 1, 1] on x + bias)."""
    stride_out, stride_in = weight.stride()[:2]
    strides = (out.shape[1] // groups * stride_out, stride_out, stride_in)
    bias = bias if bias is None else bias.contiguous()
    return _launch_pointwise(
        x, None, weight, strides, bias, None, None, out, groups, 0, activation, negative_slope
    )  # fmt: skip


def pointwise_input_gradient(
    grad: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    residual: Tensor | None,
    out_gate: Tensor | None,
    out: Tensor,
    groups: int,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """out [N, C, H, W] = gradient of a pointwise convolution's input (+ residual), from grad [N, CO, H, W].

    `gate`, `out_gate`: outputs of `activation` behind the convolution and in front of it.
    """
    stride_out, stride_in = weight.stride()[:2]
    strides = (grad.shape[1] // groups * stride_out, stride_in, stride_out)
    return _launch_pointwise(
        grad, gate, weight, strides, None, residual, out_gate, out, groups, activation, 0, negative_slope
    )  # fmt: skip


def pointwise_weight_gradient(
    grad: Tensor, gate: Tensor | None, x: Tensor, out: Tensor, groups: int, activation: int, negative_slope: float
) -> Tensor:
    """out [CO, C / groups, 1, 1] (contiguous) from grad [N, CO, H, W]; `gate`: output of `activation` behind it."""
    n, o, h, w = grad.shape
    each_in, each_out = x.shape[1] // groups, o // groups
    tile = choose("layers", "weight", grad.dtype, x, each_out)
    count, each = split_sum(n, h, w, tile)
    parts = torch.empty((count, o, each_in), dtype=torch.float32, device=x.device)
    pointwise_bwd_weight_kernel[
        count, triton.cdiv(each_in, tile.inner), groups * triton.cdiv(each_out, tile.outer)
    ](
        grad, grad if gate is None else gate, x, parts, n, each_in, each_out, h, w,
        *grad.stride(), *(grad if gate is None else gate).stride(), *x.stride(), negative_slope, each,
        GATE=0 if gate is None else activation, GROUPS=groups, TILE_H=tile.height, TILE_W=tile.width,
        BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(grad),
        ALIGN=math.gcd(alignment(grad, gate, x), each_in, each_out), WIDE=needs_wide_index(grad, gate, x),
        **tile.options(),
    )  # fmt: skip
    return sum_parts(parts, out)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    """out [N, C, HO, WO] = activation(weight [C, 1, KH, KW] on x + bias)."""
    n, c, h, w = x.shape
    ho, wo = out.shape[2:]
    kh, kw = weight.shape[2:]
    tile = choose("layers", "depthwise", x.dtype, x, c, max(dilation))
    depthwise_kernel[
        n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(c, tile.outer)
    ](
        x, weight, bias if bias is None else bias.contiguous(), out, c, h, w, ho, wo,
        *x.stride(), *tap_strides(weight), *out.stride(), *stride, *padding, *dilation, negative_slope, KH=kh, KW=kw,
        ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer, ALIGN=alignment(x, out),
        WIDE=needs_wide_index(x, out), **tile.options(),
    )  # fmt: skip
    return out
