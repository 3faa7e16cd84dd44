"""upsample_concat - bilinear resize of `x` to `skip`'s size, written straight into the concatenated output.

Replaces: F.interpolate + torch.cat (the resized map is written once, where it belongs)
Shapes:   x [N, C1, h, w], skip [N, C2, H, W], any strides -> out [N, C1+C2, H, W] in skip's memory format
Traffic:  minimum (N*C1*h*w + N*C2*H*W + N*(C1+C2)*H*W) * sizeof(T); eager moves 2*N*C1*H*W*sizeof(T) more
Bound:    memory; not timed on its own yet
Launch:   grid (N * pixel tiles, C1 blocks + C2 blocks); tiles.csv: rows by (pass, memory format)
Numerics: float32 coordinates (torch's rules) and sums; deterministic
Backward: a gather in two passes, along the width into a float32 [N, C1, H, w] map, then along the height; torch's own
          backward adds with atomics
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
    aligned,
    alignment,
    extents,
    first_reader,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    reader_weight,
    resize_readers,
    resize_scale,
    resize_source,
    tile_position,
)
from ._tiles import choose, layout_class


@triton.jit
def _between(image, y, left, right, fx, c, mask, strides, WIDE: tl.constexpr):
    a = tl.load(image + offsets(y, left, c, strides, WIDE), mask=mask, other=0.0).to(tl.float32)
    b = tl.load(image + offsets(y, right, c, strides, WIDE), mask=mask, other=0.0).to(tl.float32)
    return (1.0 - fx)[:, None] * a + fx[:, None] * b


@kernel
def upsample_concat_fwd_kernel(
    x,  # [N, C1, h, w]
    skip,  # [N, C2, H, W]
    out,  # [N, C1 + C2, H, W]
    C1,
    C2,
    h,
    w,
    H,
    W,
    x_n, x_c, x_h, x_w,
    s_n, s_c, s_h, s_w,
    o_n, o_c, o_h, o_w,
    scale_h,
    scale_w,
    ALIGN_CORNERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    s_strides = aligned(s_n, s_c, s_h, s_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C1, W = extents(C1, W, ALIGN)
    C2, _ = extents(C2, W, ALIGN)
    n, oy, ox = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    inside = (oy < H) & (ox < W)
    out += n * o_strides[0]
    blocks = tl.cdiv(C1, BLOCK_C)
    if tl.program_id(1) < blocks:
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (c < C1)[None, :]
        top, bottom, fy = resize_source(oy, h, scale_h, ALIGN_CORNERS)
        left, right, fx = resize_source(ox, w, scale_w, ALIGN_CORNERS)
        image = x + n * x_strides[0]
        upper = _between(image, top, left, right, fx, c, mask, x_strides, WIDE)
        lower = _between(image, bottom, left, right, fx, c, mask, x_strides, WIDE)
        value = (1.0 - fy)[:, None] * upper + fy[:, None] * lower
        tl.store(out + offsets(oy, ox, c, o_strides, WIDE), value.to(out.dtype.element_ty), mask=mask)
    else:
        c = (tl.program_id(1) - blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (c < C2)[None, :]
        v = tl.load(skip + n * s_strides[0] + offsets(oy, ox, c, s_strides, WIDE), mask=mask, other=0.0)
        tl.store(out + offsets(oy, ox, C1 + c, o_strides, WIDE), v, mask=mask)


@kernel
def upsample_concat_bwd_axis_kernel(
    grad,  # [N, C, H, P], or with ALONG_HEIGHT [N, C, P, W]
    out,  # [N, C, H, W]
    C,
    H,
    W,
    P,
    g_n, g_c, g_h, g_w,
    o_n, o_c, o_h, o_w,
    scale,
    inverse,
    readers,
    ALIGN_CORNERS: tl.constexpr,
    ALONG_HEIGHT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C, W = extents(C, W, ALIGN)
    n, y, x = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (y < H) & (x < W)
    grad += n * g_strides[0]
    if ALONG_HEIGHT:
        source = y
        size = H
    else:
        source = x
        size = W
    first = first_reader(source, inverse, ALIGN_CORNERS)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    for reader in range(readers):
        p = first + reader
        weight = reader_weight(p, source, size, scale, ALIGN_CORNERS)
        if ALONG_HEIGHT:
            pointers = grad + offsets(p, x, c, g_strides, WIDE)
        else:
            pointers = grad + offsets(y, p, c, g_strides, WIDE)
        mask = (inside & (p < P) & (weight != 0.0))[:, None] & (c < C)[None, :]
        acc += weight[:, None] * tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    pointers = out + n * o_strides[0] + offsets(y, x, c, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


def forward(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    n, c1, h, w = x.shape
    _, c2, height, width = skip.shape
    out = empty_like_format(skip, (n, c1 + c2, height, width))
    if n == 0:
        return out
    tile = choose("upsample_concat", "forward", layout_class(skip), x)
    blocks = triton.cdiv(c1, tile.outer) + triton.cdiv(c2, tile.outer)
    with guard(x):
        upsample_concat_fwd_kernel[
            n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width), blocks
        ](
            x, skip, out, c1, c2, h, w, height, width, *x.stride(), *skip.stride(),
            *out.stride(),
            resize_scale(h, height, align_corners), resize_scale(w, width, align_corners),
            ALIGN_CORNERS=align_corners, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
            ALIGN=alignment(x, skip, out, rows=layout_class(skip) == "nchw"),
            WIDE=needs_wide_index(x, skip, out), **tile.options(),
        )  # fmt: skip
    return out


def _shrink(grad: Tensor, out: Tensor, axis: int, align_corners: bool) -> None:
    """The transpose of the resize along one axis: out's pixels gather from grad's along it."""
    n, c, height, width = out.shape
    size, readers_of = out.shape[axis], grad.shape[axis]
    tile = choose("upsample_concat", "backward", layout_class(out), grad)
    inverse, readers = resize_readers(size, readers_of, align_corners)
    with guard(grad):
        upsample_concat_bwd_axis_kernel[
            n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width), triton.cdiv(c, tile.outer)
        ](
            grad, out, c, height, width, readers_of, *grad.stride(), *out.stride(),
            resize_scale(size, readers_of, align_corners), inverse, readers,
            ALIGN_CORNERS=align_corners, ALONG_HEIGHT=axis == 2, TILE_H=tile.height, TILE_W=tile.width,
            BLOCK_C=tile.outer, ALIGN=alignment(grad, out, rows=layout_class(out) == "nchw"),
            WIDE=needs_wide_index(grad, out), **tile.options(),
        )  # fmt: skip


def backward(grad: Tensor, size: Sequence[int], channels: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    n, total, height, width = grad.shape
    grad_x = empty_like_format(grad, (n, channels, *size))
    grad_skip = empty_like_format(grad, (n, total - channels, height, width)).copy_(grad[:, channels:])
    if n > 0:
        narrow = empty_like_format(grad, (n, channels, height, size[1]), torch.float32)
        _shrink(grad[:, :channels], narrow, 3, align_corners)
        _shrink(narrow, grad_x, 2, align_corners)
    return grad_x, grad_skip
