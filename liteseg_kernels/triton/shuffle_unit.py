"""shuffle_unit - grouped 1x1 -> ReLU -> shuffle -> depthwise 3x3 -> grouped 1x1 -> + x, or behind pooled x -> ReLU.

Replaces: three F.conv2d, two activations, the shuffle's copy, an add or an average pool with a concatenation
Shapes:   x [N, C, H, W], compress [B, C / G1, 1, 1], depthwise [B, 1, 3, 3], expand [D, B / G, 1, 1]
          -> out [N, D, H, W] (D = C), or [N, C + D, HO, WO] with concat; any strides in, out in x's memory format
Traffic:  minimum (N*C*H*W + N*CO*HO*WO [+ 9/4 of x for the pool]) * sizeof(T), and the compressed map N*B*H*W written
          and read; eager moves 3*N*B*H*W + 3*N*B*HO*WO + 3*N*CO*HO*WO elements more
Bound:    memory; not timed on its own yet
Launch:   two: the compression (_layers.py), then the rest on a grid (N * pixel tiles, G * blocks of D / G [+ blocks of
          C that pool]); tiles.csv: rows by (dtype class, D / G). The products are those of the groups alone
          (B / G = 12, 24, 48), not a dense one with zeros
Numerics: float32 taps and accumulation; rounded to T where stored and where a product takes its operand. Deterministic
Shuffle:  the compressed map is stored as computed; channel p after the shuffle is channel p % G * B/G + p // G before
Backward: composed of single layers (_layers.py) on a shuffled copy of the compressed map, computed again
Limits:   float32, float16, bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import empty_like_format
from . import _layers as layers
from ._common import (
    activate,
    aligned,
    alignment,
    divisor,
    dot_precision,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    product,
    tile_position,
)
from ._separable_backward import (
    bias_gradient,
    depthwise_input_gradient,
    depthwise_weight_gradient,
    pre_activation_gradient,
)
from ._tiles import choose

_RELU = 1


@kernel
def shuffle_unit_fwd_kernel(
    x,  # [N, C, H, W]
    hidden,  # [N, H, W, B], contiguous: compressed, in the order before the shuffle
    depthwise,  # [B, 1, 3, 3], contiguous
    depthwise_bias,  # [B]
    expand,  # [D, B / GROUPS, 1, 1], contiguous
    expand_bias,  # [D]
    out,  # [N, D, HO, WO], or with CONCAT [N, C + D, HO, WO]
    C,
    H,
    W,
    each_in,  # B / GROUPS
    each_out,  # D / GROUPS
    HO,
    WO,
    x_n, x_c, x_h, x_w,
    o_n, o_c, o_h, o_w,
    stride_h, stride_w,
    dilation_h, dilation_w,
    GROUPS: tl.constexpr,
    CONCAT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EACH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    stride = (stride_h, stride_w)
    dilation = (dilation_h, dilation_w)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C = C // ALIGN * ALIGN
    each_in = each_in // EACH * EACH
    each_out = each_out // EACH * EACH
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    inside = (oy < HO) & (ox < WO)
    out += n * o_strides[0]
    image = x + n * x_strides[0]
    blocks = tl.cdiv(each_out, BLOCK_O)
    if tl.program_id(1) < GROUPS * blocks:
        group = tl.program_id(1) // blocks
        o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
        mask = inside[:, None] & (o < each_out)[None, :]
        o += group * each_out
        B = GROUPS * each_in
        iy = oy * stride[0] - dilation[0]
        ix = ox * stride[1] - dilation[1]
        acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
        for first in range(0, each_in, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            # the channel's place after the shuffle, and before it
            place = group * each_in + c
            source = place % GROUPS * each_in + place // GROUPS
            between = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
            # unrolled by rows: nine taps at once would not fit the registers
            for ky in range(3):
                y = iy + ky * dilation[0]
                for kx in tl.static_range(3):
                    z = ix + kx * dilation[1]
                    read = (y >= 0) & (y < H) & (z >= 0) & (z < W)
                    pointers = hidden + n * H * W * B + offsets(y, z, source, (0, 1, W * B, B), WIDE)
                    value = tl.load(pointers, mask=read[:, None] & (c < each_in)[None, :], other=0.0)
                    weight = tl.load(depthwise + place * 9 + ky * 3 + kx, mask=c < each_in, other=0.0)
                    between += value.to(tl.float32) * weight.to(tl.float32)[None, :]
            between += tl.load(depthwise_bias + place, mask=c < each_in, other=0.0).to(tl.float32)[None, :]
            pointers = expand + o[None, :] * each_in + c[:, None]
            weight = tl.load(
                pointers, mask=(c < each_in)[:, None] & (o < (group + 1) * each_out)[None, :], other=0.0
            )  # [BC, BO]
            acc = product(between.to(weight.dtype), weight, acc, PRECISION)
        acc += tl.load(expand_bias + o, mask=o < (group + 1) * each_out, other=0.0).to(tl.float32)[None, :]
        if CONCAT:
            o += C
        else:
            acc += tl.load(image + offsets(oy, ox, o, x_strides, WIDE), mask=mask, other=0.0).to(tl.float32)
        acc = activate(acc, 1, 0.0)
        tl.store(out + offsets(oy, ox, o, o_strides, WIDE), acc.to(out.dtype.element_ty), mask=mask)
    elif CONCAT:
        c = (tl.program_id(1) - GROUPS * blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
        total = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
        for tap in range(9):
            y = oy * stride[0] - 1 + tap // 3
            z = ox * stride[1] - 1 + tap % 3
            read = (y >= 0) & (y < H) & (z >= 0) & (z < W)
            pointers = image + offsets(y, z, c, x_strides, WIDE)
            total += tl.load(pointers, mask=read[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        # the padding counts as zeros
        total = activate(total / 9.0, 1, 0.0)
        mask = inside[:, None] & (c < C)[None, :]
        tl.store(out + offsets(oy, ox, c, o_strides, WIDE), total.to(out.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    concat: bool,
) -> Tensor:
    n, c, h, w = x.shape
    b, d = compress_weight.shape[0], expand_weight.shape[0]
    ho, wo = (h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1
    out = empty_like_format(x, (n, c + d if concat else d, ho, wo))
    if n == 0:
        return out
    tile = choose("shuffle_unit", "forward", x.dtype, x, d // groups)
    blocks = groups * triton.cdiv(d // groups, tile.outer) + (triton.cdiv(c, tile.outer) if concat else 0)
    hidden = layers.nhwc(x, (n, b, h, w))
    with guard(x):
        layers.pointwise(x, compress_weight, compress_bias, hidden, c // compress_weight.shape[1], _RELU, 0.0)
        shuffle_unit_fwd_kernel[n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), blocks](
            x, hidden, depthwise_weight.contiguous(), depthwise_bias.contiguous(), expand_weight.contiguous(),
            expand_bias.contiguous(), out, c, h, w, b // groups, d // groups, ho, wo, *x.stride(),
            *out.stride(), *stride, *dilation, GROUPS=groups, CONCAT=concat, TILE_H=tile.height, TILE_W=tile.width,
            BLOCK_C=tile.inner, BLOCK_O=tile.outer, PRECISION=dot_precision(x), ALIGN=alignment(x, out),
            EACH=divisor(b // groups, d // groups),
            WIDE=needs_wide_index(x, hidden, out), **tile.options(),
        )  # fmt: skip
    return out


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of x (channels last) shuffled, in a copy of the same format; C / groups undoes groups."""
    n, c, h, w = x.shape
    split = x.permute(0, 2, 3, 1).view(n, h, w, groups, c // groups)
    return split.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


def backward(
    grad: Tensor,
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    output: Tensor,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    concat: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    b, d = compress_weight.shape[0], expand_weight.shape[0]
    ho, wo = grad.shape[2:]
    geometry = (stride, dilation, dilation)
    shapes = (compress_weight.shape, (b,), depthwise_weight.shape, (b,), expand_weight.shape, (d,))
    grad_x = empty_like_format(x, x.shape) if output_mask[0] else x.new_empty(0)
    results = (grad_x, *(x.new_empty(s if wanted else 0) for s, wanted in zip(shapes, output_mask[1:], strict=True)))
    if n == 0:
        for result in results:
            result.zero_()
        return results
    _, grad_compress, grad_compress_bias, grad_depthwise, grad_depthwise_bias, grad_expand, grad_expand_bias = results

    with guard(x):
        # the gradient before the last activation: of the pooled input in front, and of the branch
        gated = layers.nhwc(x, grad.shape)
        pre_activation_gradient(grad, output, gated, _RELU, 0.0)
        branch = gated[:, c:] if concat else gated
        if output_mask[6]:
            bias_gradient(branch, branch, grad_expand_bias, 0, 0.0)
        if not any(output_mask[:6]):
            return results
        first_groups = c // compress_weight.shape[1]
        compressed = layers.nhwc(x, (n, b, h, w))
        layers.pointwise(x, compress_weight, compress_bias, compressed, first_groups, _RELU, 0.0)
        shuffled = _shuffled(compressed, groups)
        if output_mask[5]:
            filtered = layers.nhwc(x, (n, b, ho, wo))
            layers.depthwise(shuffled, depthwise_weight, depthwise_bias, filtered, *geometry, 0, 0.0)
            layers.pointwise_weight_gradient(branch, None, filtered, grad_expand, groups, 0, 0.0)
        grad_filtered = layers.nhwc(x, (n, b, ho, wo))
        layers.pointwise_input_gradient(branch, None, expand_weight, None, None, grad_filtered, groups, 0, 0.0)
        if output_mask[4]:
            bias_gradient(grad_filtered, grad_filtered, grad_depthwise_bias, 0, 0.0)
        hidden = grad_filtered.permute(0, 2, 3, 1)
        if output_mask[3]:
            depthwise_weight_gradient(hidden, shuffled, depthwise_weight, grad_depthwise, *geometry)
        if not any(output_mask[:3]):
            return results
        grad_shuffled = layers.nhwc(x, shuffled.shape)
        depthwise_input_gradient(hidden, depthwise_weight, grad_shuffled, *geometry)
        grad_compressed = _shuffled(grad_shuffled, b // groups)
        if output_mask[2]:
            bias_gradient(grad_compressed, compressed, grad_compress_bias, _RELU, 0.0)
        if output_mask[1]:
            layers.pointwise_weight_gradient(grad_compressed, compressed, x, grad_compress, first_groups, _RELU, 0.0)
        if output_mask[0]:
            shortcut = gated
            if concat:
                # an average pool is a depthwise convolution with ninths
                ninth = torch.full((1, 1, 1, 1), 1 / 9, dtype=torch.float32, device=x.device).expand(c, 1, 3, 3)
                shortcut = layers.nhwc(x, x.shape)
                pooled = gated[:, :c].permute(0, 2, 3, 1).contiguous()
                depthwise_input_gradient(pooled, ninth, shortcut, stride, (1, 1), (1, 1))
            layers.pointwise_input_gradient(
                grad_compressed, compressed, compress_weight, shortcut, None, grad_x, first_groups, _RELU, 0.0
            )
    return results
