"""upsample_cross_entropy - bilinear resize of K class maps and their cross-entropy, without the full-size logits.

Replaces: F.interpolate + F.cross_entropy (ignore_index, class weights, label_smoothing) and both backwards
Shapes:   logits [N, K, h, w], target [N, H, W], any strides -> loss and weight sums [N] float32, or the loss map
          [N, H, W] float32; backward -> grad_logits [N, K, h, w]
Traffic:  forward minimum N*K*h*w * sizeof(T) + N*H*W * sizeof(target); eager moves at least 5*N*K*H*W*sizeof(T) more.
          backward reads 4 + sizeof(target) bytes a pixel and class, out of the caches where N*H*W fits
Bound:    exponentials and loads out of the caches; not timed on its own yet
Launch:   forward grid (N * pixel tiles), one part a tile, then one program an image; backward the same tiles for the
          log-sum-exp [N, H, W] float32 (its only temporary), then grid (N * source tiles, K); tiles.csv: one row a pass
Numerics: float32 throughout; online log-sum-exp. grad_logits is gathered: a source tile's gradient is Ay^T G Ax with G
          the full-size gradient of one class, computed again tile by tile, and Ay, Ax the resize's weights. No atomics,
          fixed order. A target that is neither a class nor ignore_index makes the loss NaN
Limits:   float32, float16, bfloat16
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._layout import empty_like_format
from ._common import (
    aligned,
    alignment,
    divisor,
    extents,
    first_reader,
    guard,
    kernel,
    needs_wide_index,
    reader_weight,
    resize_readers,
    resize_scale,
    resize_source,
    tile_position,
    widen,
)
from ._tiles import choose

# parts that one step of the sum over an image adds
_SUM_BLOCK = 1024


@triton.jit
def _value(plane, top, bottom, left, right, fy, fx, inside):
    """One class at the pixels; top.. are offsets, of any shapes that broadcast to inside's."""
    a = tl.load(plane + (top + left), mask=inside, other=0.0).to(tl.float32)
    b = tl.load(plane + (top + right), mask=inside, other=0.0).to(tl.float32)
    c = tl.load(plane + (bottom + left), mask=inside, other=0.0).to(tl.float32)
    d = tl.load(plane + (bottom + right), mask=inside, other=0.0).to(tl.float32)
    return (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)


@kernel
def upsample_cross_entropy_fwd_kernel(
    logits,  # [N, K, h, w]
    target,  # [N, H, W] integers, or None: then `out` gets the log-sum-exp
    weight,  # [K] or None
    out,  # [N, H, W] float32: loss map or log-sum-exp; with SUMS [N, tiles] float32: loss sums
    weights_out,  # with SUMS [N, tiles] float32: weight sums
    K,
    h,
    w,
    H,
    W,
    x_n, x_c, x_h, x_w,
    t_n, t_h, t_w,
    ignore_index,
    smoothing,
    scale_h,
    scale_w,
    ALIGN_CORNERS: tl.constexpr,
    SMOOTH: tl.constexpr,
    SUMS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    t_n, _, t_h, t_w = aligned(t_n, 0, t_h, t_w, ALIGN)
    _, W = extents(K, W, ALIGN)
    n, y, x = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    inside = (y < H) & (x < W)
    top, bottom, fy = resize_source(y, h, scale_h, ALIGN_CORNERS)
    left, right, fx = resize_source(x, w, scale_w, ALIGN_CORNERS)
    top = widen(top, WIDE) * x_h
    bottom = widen(bottom, WIDE) * x_h
    left = widen(left, WIDE) * x_w
    right = widen(right, WIDE) * x_w
    y = widen(y, WIDE)
    label = tl.full((TILE_H * TILE_W,), -1, tl.int64)
    valid = inside
    if target is not None:
        pointers = target + n * t_n + y * t_h + widen(x, WIDE) * t_w
        label = tl.load(pointers, mask=inside, other=0).to(tl.int64)
        valid = inside & (label != ignore_index)
    plane = logits + n * x_n
    # not minus infinity: the difference of two of them would be NaN
    most = tl.full((TILE_H * TILE_W,), -3.0e38, tl.float32)
    total = tl.zeros((TILE_H * TILE_W,), tl.float32)
    chosen = tl.zeros((TILE_H * TILE_W,), tl.float32)
    # label smoothing's sums, of values relative to the first class's, so that large logits cancel exactly
    first = tl.zeros((TILE_H * TILE_W,), tl.float32)
    smooth = tl.zeros((TILE_H * TILE_W,), tl.float32)
    weights = 0.0
    for k in range(K):
        value = _value(plane, top, bottom, left, right, fy, fx, inside)
        more = tl.maximum(most, value)
        total = total * tl.exp(most - more) + tl.exp(value - more)
        most = more
        if target is not None:
            chosen = tl.where(label == k, value, chosen)
        if SMOOTH:
            first = tl.where(k == 0, value, first)
            class_weight = 1.0
            if weight is not None:
                class_weight = tl.load(weight + k).to(tl.float32)
            smooth += class_weight * (value - first)
            weights += class_weight
        plane += x_c
    normaliser = most + tl.log(total)
    if target is None:
        tl.store(out + n * H * W + y * W + x, normaliser, mask=inside)
    else:
        known = (label >= 0) & (label < K)
        pixel_weight = tl.full((TILE_H * TILE_W,), 1.0, tl.float32)
        if weight is not None:
            pixel_weight = tl.load(weight + label, mask=valid & known, other=0.0).to(tl.float32)
        loss = pixel_weight * (normaliser - chosen)
        if SMOOTH:
            loss = (1.0 - smoothing) * loss + smoothing / K * (weights * (normaliser - first) - smooth)
        loss = tl.where(known, loss, float("nan"))
        loss = tl.where(valid, loss, 0.0)
        if SUMS:
            tl.store(out + tl.program_id(0), tl.sum(loss, 0))
            tl.store(weights_out + tl.program_id(0), tl.sum(tl.where(valid, pixel_weight, 0.0), 0))
        else:
            tl.store(out + n * H * W + y * W + x, loss, mask=inside)


@kernel
def upsample_cross_entropy_sum_kernel(
    losses,  # [N, M] float32, contiguous
    weights,  # [N, M] float32, contiguous
    loss,  # [N] float32
    weight,  # [N] float32
    M,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    loss_sum = tl.zeros((BLOCK,), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, M, BLOCK):
        m = start + tl.arange(0, BLOCK)
        loss_sum += tl.load(losses + n * M + m, mask=m < M, other=0.0)
        weight_sum += tl.load(weights + n * M + m, mask=m < M, other=0.0)
    tl.store(loss + n, tl.sum(loss_sum, 0))
    tl.store(weight + n, tl.sum(weight_sum, 0))


@kernel
def upsample_cross_entropy_bwd_kernel(
    scale,  # [N] or [N, H, W]: gradient of each image's or each pixel's loss
    logits,  # [N, K, h, w]
    target,  # [N, H, W] integers
    weight,  # [K] or None
    normaliser,  # [N, H, W] float32, contiguous: log-sum-exp
    grad,  # [N, K, h, w]
    K,
    h,
    w,
    H,
    W,
    s_n, s_h, s_w,
    x_n, x_c, x_h, x_w,
    t_n, t_h, t_w,
    g_n, g_c, g_h, g_w,
    ignore_index,
    smoothing,
    scale_h,
    scale_w,
    inverse_h,
    inverse_w,
    readers_h,
    readers_w,
    ALIGN_CORNERS: tl.constexpr,
    SMOOTH: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CELLS_H: tl.constexpr,
    CELLS_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    t_n, _, t_h, t_w = aligned(t_n, 0, t_h, t_w, ALIGN)
    _, W = extents(K, W, ALIGN)
    across = tl.cdiv(w, CELLS_W)
    per_image = tl.cdiv(h, CELLS_H) * across
    n = (tl.program_id(0) // per_image).to(tl.int64)
    cell_y = tl.program_id(0) % per_image // across * CELLS_H
    cell_x = tl.program_id(0) % per_image % across * CELLS_W
    i = cell_y + tl.arange(0, CELLS_H)
    j = cell_x + tl.arange(0, CELLS_W)
    k = tl.program_id(1)
    plane = logits + n * x_n + k.to(tl.int64) * x_c

    class_weight = 1.0
    if weight is not None:
        class_weight = tl.load(weight + k).to(tl.float32)
    weights = K * 1.0
    if SMOOTH and weight is not None:
        weights = 0.0
        for start in range(0, K, BLOCK_K):
            every = start + tl.arange(0, BLOCK_K)
            weights += tl.sum(tl.load(weight + every, mask=every < K, other=0.0).to(tl.float32), 0)

    # the target pixels that read these source pixels
    first_y = first_reader(cell_y, inverse_h, ALIGN_CORNERS)
    first_x = first_reader(cell_x, inverse_w, ALIGN_CORNERS)
    last_y = tl.minimum(first_reader(tl.minimum(cell_y + CELLS_H, h) - 1, inverse_h, ALIGN_CORNERS) + readers_h, H)
    last_x = tl.minimum(first_reader(tl.minimum(cell_x + CELLS_W, w) - 1, inverse_w, ALIGN_CORNERS) + readers_w, W)
    acc = tl.zeros((CELLS_H, CELLS_W), tl.float32)
    for start_y in range(first_y, last_y, TILE_H):
        y = start_y + tl.arange(0, TILE_H)
        top, bottom, fy = resize_source(y, h, scale_h, ALIGN_CORNERS)
        top = (widen(top, WIDE) * x_h)[:, None]
        bottom = (widen(bottom, WIDE) * x_h)[:, None]
        weight_y = reader_weight(y[None, :], i[:, None], h, scale_h, ALIGN_CORNERS)  # [CELLS_H, TILE_H]
        for start_x in range(first_x, last_x, TILE_W):
            x = start_x + tl.arange(0, TILE_W)
            left, right, fx = resize_source(x, w, scale_w, ALIGN_CORNERS)
            left = (widen(left, WIDE) * x_w)[None, :]
            right = (widen(right, WIDE) * x_w)[None, :]
            inside = (y < H)[:, None] & (x < W)[None, :]
            pixel_y = widen(y, WIDE)[:, None]
            pixel_x = widen(x, WIDE)[None, :]
            label = tl.load(target + n * t_n + pixel_y * t_h + pixel_x * t_w, mask=inside, other=0).to(tl.int64)
            valid = inside & (label != ignore_index)
            factor = tl.load(scale + n * s_n + pixel_y * s_h + pixel_x * s_w, mask=valid, other=0.0).to(tl.float32)
            log_sum = tl.load(normaliser + n * H * W + pixel_y * W + pixel_x, mask=inside, other=0.0)
            value = _value(plane, top, bottom, left, right, fy[:, None], fx[None, :], inside)
            probability = tl.exp(value - log_sum)
            gradient = probability - tl.where(label == k, 1.0, 0.0)
            if weight is not None:
                known = (label >= 0) & (label < K)
                gradient *= tl.load(weight + label, mask=valid & known, other=0.0).to(tl.float32)
            if SMOOTH:
                smooth = weights * probability - class_weight
                gradient = (1.0 - smoothing) * gradient + smoothing / K * smooth
            gradient = tl.where(valid, factor * gradient, 0.0)
            weight_x = reader_weight(x[:, None], j[None, :], w, scale_w, ALIGN_CORNERS)  # [TILE_W, CELLS_W]
            rows = tl.dot(gradient, weight_x, input_precision="ieee")  # [TILE_H, CELLS_W]
            acc = tl.dot(weight_y, rows, acc, input_precision="ieee")
    pointers = grad + n * g_n + k.to(tl.int64) * g_c
    pointers += (widen(i, WIDE) * g_h)[:, None] + (widen(j, WIDE) * g_w)[None, :]
    tl.store(pointers, acc.to(grad.dtype.element_ty), mask=(i < h)[:, None] & (j < w)[None, :])


def _launch_pixels(
    logits: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    out: Tensor,
    weights_out: Tensor | None,
    size: tuple[int, int],
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> None:
    n, classes, h, w = logits.shape
    height, width = size
    tile = choose("upsample_cross_entropy", "forward", "any", logits)
    upsample_cross_entropy_fwd_kernel[(n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width),)](
        logits, target, weight, out, weights_out, classes, h, w, height, width, *logits.stride(),
        *((0, 0, 0) if target is None else target.stride()), ignore_index, label_smoothing,
        resize_scale(h, height, align_corners), resize_scale(w, width, align_corners),
        ALIGN_CORNERS=align_corners, SMOOTH=target is not None and label_smoothing > 0.0,
        SUMS=weights_out is not None, TILE_H=tile.height, TILE_W=tile.width,
        ALIGN=-divisor(width) if target is None else alignment(target, rows=True),
        WIDE=needs_wide_index(logits, target) or height * width >= 2**31, **tile.options(),
    )  # fmt: skip


def loss_map(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    out = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    if out.numel() > 0:
        weight = weight if weight is None else weight.contiguous()
        size = (target.shape[1], target.shape[2])
        with guard(logits):
            _launch_pixels(logits, target, weight, out, None, size, ignore_index, label_smoothing, align_corners)
    return out


def forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    n, height, width = target.shape
    tile = choose("upsample_cross_entropy", "forward", "any", logits)
    tiles = triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width)
    losses, weights = (torch.empty((n, tiles), dtype=torch.float32, device=logits.device) for _ in range(2))
    loss, weight_sum = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(2))
    if n > 0:
        weight = weight if weight is None else weight.contiguous()
        settings = (ignore_index, label_smoothing, align_corners)
        with guard(logits):
            _launch_pixels(logits, target, weight, losses, weights, (height, width), *settings)
            upsample_cross_entropy_sum_kernel[(n,)](
                losses, weights, loss, weight_sum, tiles, BLOCK=_SUM_BLOCK, num_warps=4, num_stages=1
            )
    return loss, weight_sum


def backward(
    scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    n, classes, h, w = logits.shape
    height, width = target.shape[1:]
    grad = empty_like_format(logits, logits.shape)
    if n == 0:
        return grad
    weight = weight if weight is None else weight.contiguous()
    normaliser = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    inverse_h, readers_h = resize_readers(h, height, align_corners)
    inverse_w, readers_w = resize_readers(w, width, align_corners)
    tile = choose("upsample_cross_entropy", "backward", "any", logits)
    with guard(logits):
        _launch_pixels(logits, None, None, normaliser, None, (height, width), ignore_index, 0.0, align_corners)
        upsample_cross_entropy_bwd_kernel[
            n * triton.cdiv(h, tile.inner) * triton.cdiv(w, tile.outer), classes
        ](
            scale, logits, target, weight, normaliser, grad, classes, h, w, height, width,
            *(*scale.stride(), 0, 0)[:3], *logits.stride(), *target.stride(), *grad.stride(),
            ignore_index, label_smoothing,
            resize_scale(h, height, align_corners), resize_scale(w, width, align_corners),
            inverse_h, inverse_w, readers_h, readers_w,
            ALIGN_CORNERS=align_corners, SMOOTH=label_smoothing > 0.0, TILE_H=tile.height, TILE_W=tile.width,
            CELLS_H=tile.inner, CELLS_W=tile.outer, BLOCK_K=32,
            ALIGN=alignment(target, rows=True),
            WIDE=needs_wide_index(logits, target, grad) or height * width >= 2**31, **tile.options(),
        )  # fmt: skip
    return grad
