"""upsample_concat_separable_conv2d - upsample_concat, then separable_conv2d, without either map between them.

Replaces: F.interpolate, torch.cat, two F.conv2d and an activation (LiteSeg's first decoder layer)
Shapes:   x [N, C1, h, w], skip [N, C2, H, W], depthwise [C1 + C2, 1, KH, KW], pointwise [CO, C1 + C2, 1, 1]
          -> out [N, CO, HO, WO] in skip's memory format; any strides in
Traffic:  minimum (N*C1*h*w + N*C2*H*W + N*CO*HO*WO) * sizeof(T) and the weights; as two launches
          2*N*(C1 + C2)*H*W*sizeof(T) more
Bound:    products; not timed on its own yet
Launch:   one, grid (N * pixel tiles, CO blocks), tiles.csv: rows by (dtype class, CO block). A tile and its taps read a
          window of x of at most _WINDOW pixels: each tap's bilinear samples are a product, its weights [pixels, window]
          times the window [window, channels], so x is loaded once a tile and not four times a tap. Where the map does
          not grow enough for that window, two launches: upsample_concat's and separable_conv2d's
Numerics: float32 coordinates (torch's rules) and accumulation; the resize's weights, and the depthwise value, are
          rounded to T for their products. float32 products are exact unless torch allows tf32. Deterministic
Backward: the concatenation is computed again, for the backwards of separable_conv2d and upsample_concat: three maps of
          its size while it runs (it, its gradient, and the depthwise map's), none between forward and backward
Limits:   float32, float16, bfloat16
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .._layout import empty_like_format
from . import separable_conv2d, upsample_concat
from ._common import (
    activate,
    aligned,
    alignment,
    dot_precision,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    product,
    reader_weight,
    resize_scale,
    resize_source,
    tap_strides,
    tile_position,
)
from ._separable import _tap
from ._tiles import choose

# most pixels of x that a tile may read: more of them are more products than what two launches cost
_WINDOW = 32
# most taps along an axis: the resize's weights of each stay in registers
_TAPS = 3


@triton.jit
def _reads(
    i,  # [P], pixels of the resized map along one axis
    source,  # [S], pixels of x along it
    size_in,
    size,
    scale,
    ALIGN_CORNERS: tl.constexpr,
):
    """With which weights target pixels read source pixels: [P, S]; nothing outside of the resized map."""
    weight = reader_weight(i[:, None], source[None, :], size_in, scale, ALIGN_CORNERS)
    return tl.where(((i >= 0) & (i < size))[:, None], weight, 0.0)


@kernel
def upsample_concat_separable_conv2d_fwd_kernel(
    x,  # [N, C1, h, w]
    skip,  # [N, C2, H, W]
    depthwise,  # [C1 + C2, 1, KH, KW]
    pointwise,  # [CO, C1 + C2, 1, 1], contiguous
    bias,  # [CO] or None
    out,  # [N, CO, HO, WO]
    C1,
    C2,
    h,
    w,
    H,
    W,
    CO,
    HO,
    WO,
    x_n, x_c, x_h, x_w,
    s_n, s_c, s_h, s_w,
    d_c, d_y, d_x,
    o_n, o_c, o_h, o_w,
    stride_h, stride_w,
    padding_h, padding_w,
    dilation_h, dilation_w,
    scale_h,
    scale_w,
    negative_slope,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
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
    s_strides = aligned(s_n, s_c, s_h, s_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C1 = C1 // ALIGN * ALIGN
    C2 = C2 // ALIGN * ALIGN
    CO = CO // ALIGN * ALIGN
    n, oy, ox = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows = pointwise + tl.cast(tl.program_id(1) * BLOCK_O, tl.int64) * (C1 + C2)
    rows += (tl.arange(0, BLOCK_O) * (C1 + C2))[None, :]

    # the window begins with the first pixel that the tile's first tap reads
    first_y = tl.maximum(tl.min(oy, 0) * stride[0] - padding[0], 0)
    first_x = tl.maximum(tl.min(ox, 0) * stride[1] - padding[1], 0)
    top, _, _ = resize_source(first_y, h, scale_h, ALIGN_CORNERS)
    left, _, _ = resize_source(first_x, w, scale_w, ALIGN_CORNERS)
    s = tl.arange(0, WINDOW_H * WINDOW_W)
    y = top + s // WINDOW_W
    z = left + s % WINDOW_W
    iy = oy * stride[0] - padding[0]
    ix = ox * stride[1] - padding[1]
    weights_x = ()
    for kx in tl.static_range(KW):
        weights_x = weights_x + (_reads(ix + kx * dilation[1], z, w, W, scale_w, ALIGN_CORNERS),)  # type: ignore[assignment]

    image = x + n * x_strides[0]
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    for first in range(0, C1, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        window = tl.load(
            image + offsets(y, z, c, x_strides, WIDE), mask=((y < h) & (z < w))[:, None] & (c < C1)[None, :], other=0.0
        )  # [S, BC]
        between = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
        # rows of taps one after another: all at once would not fit the registers
        for ky in range(KH):
            weight_y = _reads(iy + ky * dilation[0], y, h, H, scale_h, ALIGN_CORNERS)
            for kx in tl.static_range(KW):
                samples = (weight_y * weights_x[kx]).to(window.dtype)
                value = product(samples, window, None, PRECISION)
                pointers = depthwise + c * d_strides[0] + ky * d_strides[2] + kx * d_strides[3]
                between += value * tl.load(pointers, mask=c < C1, other=0.0).to(tl.float32)[None, :]
        weight = tl.load(rows + c[:, None], mask=(c < C1)[:, None] & (o < CO)[None, :], other=0.0)  # [BC, BO]
        acc = product(between.to(weight.dtype), weight, acc, PRECISION)
    image_skip = skip + n * s_strides[0]
    depthwise_skip = depthwise + C1 * d_strides[0]
    for first in range(0, C2, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        offset = offsets(iy, ix, c, s_strides, WIDE)
        between = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
        for tap in range(KH * KW):
            between = _tap(
                between, image_skip, depthwise_skip, iy, ix, c, offset, H, W, C2, tap // KW, tap % KW, s_strides,
                d_strides, dilation,
            )  # fmt: skip
        weight = tl.load(rows + C1 + c[:, None], mask=(c < C2)[:, None] & (o < CO)[None, :], other=0.0)
        acc = product(between.to(weight.dtype), weight, acc, PRECISION)
    if bias is not None:
        acc += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, negative_slope)
    inside = ((oy < HO) & (ox < WO))[:, None] & (o < CO)[None, :]
    pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside)


def _window(tile: int, kernel: int, stride: int, dilation: int, scale: float) -> int:
    """Pixels of x along one axis that a tile and its taps may read, as a power of two."""
    extent = ((tile - 1) * stride + (kernel - 1) * dilation) * scale
    # a little more, against rounding; then the pixel it begins in and the second one that the last sample reads
    return triton.next_power_of_2(math.floor(extent + 2**-6) + 3)


def forward(
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
) -> Tensor:
    n, c1, h, w = x.shape
    c2, height, width = skip.shape[1:]
    o, kh, kw = pointwise_weight.shape[0], *depthwise_weight.shape[2:]
    ho = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    scales = resize_scale(h, height, align_corners), resize_scale(w, width, align_corners)
    tile = choose("upsample_concat_separable_conv2d", "forward", x.dtype, x, o, max(dilation))
    window = [
        _window(*axis)
        for axis in zip((tile.height, tile.width), (kh, kw), stride, dilation, scales, strict=True)
    ]  # fmt: skip
    # no side of a product is shorter than 16
    window[1] = max(window[1], 16 // window[0])
    if window[0] * window[1] > _WINDOW or max(kh, kw) > _TAPS:
        whole = upsample_concat.forward(x, skip, align_corners)
        return separable_conv2d.forward(
            whole, depthwise_weight, pointwise_weight, bias, None, stride, padding, dilation, activation, negative_slope
        )  # fmt: skip
    out = empty_like_format(skip, (n, o, ho, wo))
    if n == 0:
        return out
    with guard(x):
        upsample_concat_separable_conv2d_fwd_kernel[
            n * triton.cdiv(ho, tile.height) * triton.cdiv(wo, tile.width), triton.cdiv(o, tile.outer)
        ](
            x, skip, depthwise_weight, pointwise_weight.contiguous(), bias if bias is None else bias.contiguous(), out,
            c1, c2, h, w, height, width, o, ho, wo, *x.stride(), *skip.stride(), *tap_strides(depthwise_weight),
            *out.stride(), *stride, *padding, *dilation, *scales, negative_slope, KH=kh, KW=kw,
            ACTIVATION=activation, ALIGN_CORNERS=align_corners, WINDOW_H=window[0], WINDOW_W=window[1],
            TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.inner, BLOCK_O=tile.outer,
            PRECISION=dot_precision(x), ALIGN=alignment(x, skip, out), WIDE=needs_wide_index(x, skip, out),
            **tile.options(),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    whole = upsample_concat.forward(x, skip, align_corners)
    maps = output_mask[0] or output_mask[1]
    grad_whole, *weights, _ = separable_conv2d.backward(
        grad, whole, depthwise_weight, pointwise_weight, output, stride, padding, dilation, activation, negative_slope,
        (maps, *output_mask[2:], False),
    )  # fmt: skip
    del whole
    grad_x, grad_skip = x.new_empty(0), x.new_empty(0)
    if maps:
        grads = upsample_concat.backward(grad_whole, x.shape[2:], x.shape[1], align_corners)
        grad_x, grad_skip = (g if wanted else g.new_empty(0) for g, wanted in zip(grads, output_mask[:2], strict=True))
    return (grad_x, grad_skip, *weights)
