"""upsample_argmax - bilinear resize of K class maps, and the best class of every pixel, in one launch.

Replaces: F.interpolate + argmax(1); the K x H x W logits are never stored
Shapes:   logits [N, K, h, w], any strides -> labels [N, H, W] uint8
Traffic:  minimum N*K*h*w * sizeof(T) + N*H*W; eager moves 2*N*K*H*W*sizeof(T) + 7*N*H*W more (argmax gives int64)
Bound:    the four loads a class and pixel, out of the caches; not timed on its own yet
Launch:   grid (N * pixel tiles); tiles.csv has one row
Numerics: float32 coordinates (torch's rules) and values, never rounded to T; ties go to the lowest class, the first NaN
          wins; deterministic
Limits:   float32, float16, bfloat16; K <= 256
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    alignment,
    extents,
    guard,
    kernel,
    needs_wide_index,
    resize_scale,
    resize_source,
    tile_position,
    widen,
)
from ._tiles import choose


@kernel
def upsample_argmax_kernel(
    logits,  # [N, K, h, w]
    labels,  # [N, H, W] uint8, contiguous
    K,
    h,
    w,
    H,
    W,
    x_n, x_c, x_h, x_w,
    scale_h,
    scale_w,
    ALIGN_CORNERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    _, W = extents(K, W, ALIGN)
    n, y, x = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    top, bottom, fy = resize_source(y, h, scale_h, ALIGN_CORNERS)
    left, right, fx = resize_source(x, w, scale_w, ALIGN_CORNERS)
    top = widen(top, WIDE) * x_h
    bottom = widen(bottom, WIDE) * x_h
    left = widen(left, WIDE) * x_w
    right = widen(right, WIDE) * x_w
    plane = logits + n * x_n
    best = tl.full((TILE_H * TILE_W,), float("-inf"), tl.float32)
    label = tl.zeros((TILE_H * TILE_W,), tl.int32)
    for k in range(K):
        a = tl.load(plane + top + left, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(plane + top + right, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(plane + bottom + left, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(plane + bottom + right, mask=inside, other=0.0).to(tl.float32)
        value = (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        label = tl.where(better, k, label)
        plane += x_c
    pointers = labels + n * H * W + widen(y, WIDE) * W + x
    tl.store(pointers, label.to(tl.uint8), mask=inside)


def forward(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    n, classes, h, w = logits.shape
    height, width = size
    labels = torch.empty((n, height, width), dtype=torch.uint8, device=logits.device)
    if n == 0:
        return labels
    tile = choose("upsample_argmax", "forward", "any", logits)
    with guard(logits):
        upsample_argmax_kernel[(n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width),)](
            logits, labels, classes, h, w, height, width, *logits.stride(),
            resize_scale(h, height, align_corners), resize_scale(w, width, align_corners),
            ALIGN_CORNERS=align_corners, TILE_H=tile.height, TILE_W=tile.width,
            ALIGN=alignment(labels, rows=True), WIDE=needs_wide_index(logits, labels), **tile.options(),
        )  # fmt: skip
    return labels
