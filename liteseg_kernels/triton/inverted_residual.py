"""inverted_residual - pointwise expand -> activation -> depthwise -> activation -> project (+ x), weights folded.

Replaces: three F.conv2d, two activations and an add (MobileNetV2's block)
Shapes:   x [N, C, H, W], expand [M, C, 1, 1] or none, depthwise [M, 1, KH, KW], project [CO, M, 1, 1]
          -> out [N, CO, HO, WO] in x's memory format; any strides in, any odd kernel, stride and dilation
Traffic:  one launch: minimum (N*C*H*W + N*CO*HO*WO) * sizeof(T) and the weights; two launches write and read the
          hidden map N*M*H*W besides; eager moves 4*N*M*H*W + 4*N*M*HO*WO elements more
Bound:    one launch: products (the expansion is computed once a tap); two: memory; not timed on its own yet
Launch:   half types with C <= _FUSED_CHANNELS: one launch, grid (N * pixel tiles, CO blocks), tiles.csv: rows by
          (dtype class, CO block). Else two: the pointwise expansion, then depthwise + activation + project, both
          separable_conv2d's kernel: with wide maps the nine-fold expansion costs more than the hidden map, as it does
          in float32, which has no exact tensor-core product
Numerics: float32 accumulation; rounded to T where a product takes its operand. Deterministic
Backward: composed of single layers, both hidden maps computed again and kept in float32; see
          _inverted_residual_backward.py
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
    activate,
    aligned,
    alignment,
    block,
    divisor,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    tap_strides,
    tile_position,
)
from ._inverted_residual_backward import backward
from ._tiles import choose
from .separable_conv2d import launch_forward

__all__ = ["backward", "forward"]

# C up to which the expansion is cheap enough to be computed once a tap
_FUSED_CHANNELS = 32


@kernel
def inverted_residual_fwd_kernel(
    x,  # [N, C, H, W]
    expand,  # [M, C, 1, 1], contiguous
    expand_bias,  # [M] or None
    depthwise,  # [M, 1, KH, KW]
    depthwise_bias,  # [M] or None
    project,  # [CO, M, 1, 1], contiguous
    project_bias,  # [CO] or None
    out,  # [N, CO, HO, WO]
    C,
    H,
    W,
    M,
    CO,
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
    RESIDUAL: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_M: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    d_strides = (d_c, 0, d_y, d_x)
    stride = (stride_h, stride_w)
    padding = (padding_h, padding_w)
    dilation = (dilation_h, dilation_w)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C = C // ALIGN * ALIGN
    M = M // ALIGN_M * ALIGN_M
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.arange(0, BLOCK_C)
    iy = oy * stride[0] - padding[0]
    ix = ox * stride[1] - padding[1]
    image = x + n * x_strides[0]
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for first in range(0, M, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        weight = tl.load(expand + m[None, :] * C + c[:, None], mask=(c < C)[:, None] & (m < M)[None, :], other=0.0)
        between = tl.zeros((TILE_H * TILE_W, BLOCK_M), tl.float32)
        # not unrolled: nine expanded tiles at once would not fit the registers
        for tap in range(KH * KW):
            y = iy + tap // KW * dilation[0]
            z = ix + tap % KW * dilation[1]
            inside = (y >= 0) & (y < H) & (z >= 0) & (z < W)
            source = tl.load(
                image + offsets(y, z, c, x_strides, WIDE), mask=inside[:, None] & (c < C)[None, :], other=0.0
            )
            hidden = tl.dot(source, weight, input_precision="ieee")
            if expand_bias is not None:
                hidden += tl.load(expand_bias + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
            # the depthwise pads with zeros, not with what the expansion makes of zeros
            hidden = tl.where(inside[:, None], activate(hidden, ACTIVATION, negative_slope), 0.0)
            pointers = depthwise + m * d_strides[0] + tap // KW * d_strides[2] + tap % KW * d_strides[3]
            between += hidden * tl.load(pointers, mask=m < M, other=0.0).to(tl.float32)[None, :]
        if depthwise_bias is not None:
            between += tl.load(depthwise_bias + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
        between = activate(between, ACTIVATION, negative_slope)
        weight = tl.load(project + o[None, :] * M + m[:, None], mask=(m < M)[:, None] & (o < CO)[None, :], other=0.0)
        acc = tl.dot(between.to(weight.dtype), weight, acc, input_precision="ieee")
    if project_bias is not None:
        acc += tl.load(project_bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    if RESIDUAL:
        acc += tl.load(image + offsets(oy, ox, o, x_strides, WIDE), mask=inside, other=0.0).to(tl.float32)
    pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


def forward(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    residual: bool,
) -> Tensor:
    n, c, h, w = x.shape
    m, _, kh, kw = depthwise_weight.shape
    o = project_weight.shape[0]
    padding = [dilation[0] * (kh - 1) // 2, dilation[1] * (kw - 1) // 2]
    if expand_weight is None or c > _FUSED_CHANNELS or x.dtype == torch.float32:
        hidden = x
        if expand_weight is not None:
            hidden = launch_forward(
                x, None, None, expand_weight, expand_bias, None, (1, 1), (0, 0), (1, 1), 0, activation, negative_slope
            )  # fmt: skip
        return launch_forward(
            hidden, depthwise_weight, depthwise_bias, project_weight, project_bias, x if residual else None,
            stride, padding, dilation, activation, 0, negative_slope,
        )  # fmt: skip
    ho = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = empty_like_format(x, (n, o, ho, wo))
    if out.numel() == 0:
        return out
    biases = (b if b is None else b.contiguous() for b in (expand_bias, depthwise_bias, project_bias))
    expand_bias, depthwise_bias, project_bias = biases
    tile = choose("inverted_residual", "forward", x.dtype, x, o, max(dilation))
    with guard(x):
        inverted_residual_fwd_kernel[
            n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
        ](
            x, expand_weight.contiguous(), expand_bias, depthwise_weight, depthwise_bias, project_weight.contiguous(),
            project_bias, out, c, h, w, m, o, ho, wo, *x.stride(),
            *tap_strides(depthwise_weight), *out.stride(), *stride, *padding, *dilation, negative_slope, KH=kh, KW=kw,
            ACTIVATION=activation,
            RESIDUAL=residual, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=block(c, _FUSED_CHANNELS),
            BLOCK_M=tile.inner, BLOCK_O=tile.outer, ALIGN=alignment(x, out), ALIGN_M=divisor(m),
            WIDE=needs_wide_index(x, out), **tile.options(),
        )  # fmt: skip
    return out
