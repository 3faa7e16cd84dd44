"""batch_norm_activation - batch normalisation in training with residual and activation, forward and backward.

Replaces: native_batch_norm, add and the activation, and their backwards
Shapes:   x, grad, residual [N, C, H, W], any strides -> out and gradients in x's memory format; statistics [C]
Traffic:  statistics read x; forward reads x (and residual) and writes out; backward reads x and grad (and residual)
          twice and writes x's gradient. The value before the activation is computed again: no map of it is kept
Bound:    memory; not timed on its own yet
Launch:   grid (pixel tiles, channel blocks); in the sums at most _MOST_PARTS programs a channel block, whose parts are
          added up in trees; tiles.csv by memory format
Numerics: float32. Mean and squared deviations of a tile, merged tile by tile, then those of the programs about
          their common mean, in fixed order
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
    activation_gradient,
    aligned,
    alignment,
    divisor,
    extents,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    sum_parts,
    tile_position,
)
from ._tiles import Tile, choose, layout_class

# tiles that a program of the sums goes through at least, and most programs, whose sums have to be added up
_LEAST_TILES, _MOST_PARTS = 16, 512
# parts and channels that a step of adding up takes
_ROWS, _COLUMNS = 64, 32


@triton.jit
def _load(image, n, y, x, c, mask, strides, WIDE: tl.constexpr):
    return tl.load(image + n * strides[0] + offsets(y, x, c, strides, WIDE), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _vector(values, c, C, GIVEN: tl.constexpr, missing: tl.constexpr):
    if GIVEN:
        v = tl.load(values + c, mask=c < C, other=0.0)
    else:
        v = tl.full(c.shape, missing, tl.float32)
    return v


@triton.jit
def _merge(count, mean, squares, more, more_mean, more_squares):
    """Statistics of two sets of values as those of one (Chan et al.)."""
    total = count + more
    difference = more_mean - mean
    share = more / tl.maximum(total, 1.0)
    squares += more_squares + difference * difference * (count * share)
    return total, mean + difference * share, squares


@kernel
def batch_norm_statistics_kernel(
    x,  # [N, C, H, W]
    parts,  # [S, 3, C] float32: count, mean, squared deviations
    C,
    H,
    W,
    tiles,
    per_part,
    x_n, x_c, x_h, x_w,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    C, W = extents(C, W, ALIGN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.program_id(0) * per_part
    for tile in range(first, tl.minimum(first + per_part, tiles)):
        n, y, px = tile_position(tile, H, W, TILE_H, TILE_W)
        mask = ((y < H) & (px < W))[:, None] & (c < C)[None, :]
        v = _load(x, n, y, px, c, mask, x_strides, WIDE)
        more = tl.sum(mask.to(tl.float32), 0)
        tile_mean = tl.sum(v, 0) / tl.maximum(more, 1.0)
        deviation = tl.where(mask, v - tile_mean[None, :], 0.0)
        tile_squares = tl.sum(deviation * deviation, 0)
        count, mean, squares = _merge(count, mean, squares, more, tile_mean, tile_squares)
    row = parts + tl.program_id(0).to(tl.int64) * 3 * C + c
    tl.store(row, count, mask=c < C)
    tl.store(row + C, mean, mask=c < C)
    tl.store(row + 2 * C, squares, mask=c < C)


@triton.jit
def _statistic(parts, part, which: tl.constexpr, c, S, C):
    """Count (0), mean (1) or squared deviations (2) of parts [P] and channels c: [P, BC], zeros where there is none."""
    pointers = parts + ((part.to(tl.int64) * 3 + which) * C)[:, None] + c[None, :]
    return tl.load(pointers, mask=(part < S)[:, None] & (c < C)[None, :], other=0.0)


@kernel
def batch_norm_combine_kernel(
    parts,  # [S, 3, C] float32
    mean_out,  # [C]
    squares_out,  # [C]
    S,
    C,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    C = C // ALIGN * ALIGN
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < C
    row = tl.arange(0, ROWS)
    # relative to the first part's mean, which the others are close to: sums of means far from zero would be rounded
    origin = tl.load(parts + C + c, mask=mask, other=0.0)
    count = tl.zeros((BLOCK_C,), tl.float32)
    moment = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, S, ROWS):
        more = _statistic(parts, first + row, 0, c, S, C)
        count += tl.sum(more, 0)
        moment += tl.sum(more * (_statistic(parts, first + row, 1, c, S, C) - origin[None, :]), 0)
    shift = moment / tl.maximum(count, 1.0)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, S, ROWS):
        deviation = _statistic(parts, first + row, 1, c, S, C) - (origin + shift)[None, :]
        more = _statistic(parts, first + row, 0, c, S, C) * deviation * deviation
        squares += tl.sum(more + _statistic(parts, first + row, 2, c, S, C), 0)
    tl.store(mean_out + c, origin + shift, mask=mask)
    tl.store(squares_out + c, squares, mask=mask)


@kernel
def batch_norm_activation_fwd_kernel(
    x,  # [N, C, H, W]
    mean,  # [C] float32, likewise the next three
    invstd,
    weight,
    bias,
    residual,  # [N, C, H, W]
    out,  # [N, C, H, W]
    C,
    H,
    W,
    negative_slope,
    x_n, x_c, x_h, x_w,
    r_n, r_c, r_h, r_w,
    o_n, o_c, o_h, o_w,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C, W = extents(C, W, ALIGN)
    n, y, px = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = ((y < H) & (px < W))[:, None] & (c < C)[None, :]
    center = _vector(mean, c, C, True, 0.0)
    scale = _vector(invstd, c, C, True, 0.0) * _vector(weight, c, C, HAS_WEIGHT, 1.0)
    z = (_load(x, n, y, px, c, mask, x_strides, WIDE) - center[None, :]) * scale[None, :]
    z += _vector(bias, c, C, HAS_BIAS, 0.0)[None, :]
    if HAS_RESIDUAL:
        z += _load(residual, n, y, px, c, mask, r_strides, WIDE)
    z = activate(z, ACTIVATION, negative_slope)
    tl.store(out + n * o_strides[0] + offsets(y, px, c, o_strides, WIDE), z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(
    grad, x, residual, n, y, px, c, mask, center, scale, shift, g_strides, x_strides, r_strides, negative_slope,
    HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation, and x's deviation from the mean."""
    deviation = _load(x, n, y, px, c, mask, x_strides, WIDE) - center[None, :]
    value = _load(grad, n, y, px, c, mask, g_strides, WIDE)
    if ACTIVATION != 0:
        z = deviation * scale[None, :] + shift[None, :]
        if HAS_RESIDUAL:
            z += _load(residual, n, y, px, c, mask, r_strides, WIDE)
        value = activation_gradient(value, z, ACTIVATION, negative_slope)
    return value, deviation


@kernel
def batch_norm_activation_bwd_reduce_kernel(
    grad,  # [N, C, H, W]
    x,  # [N, C, H, W]
    mean,  # [C] float32, likewise the next three
    invstd,
    weight,
    bias,
    residual,  # [N, C, H, W]
    parts,  # [S, 2, C] float32
    C,
    H,
    W,
    tiles,
    per_part,
    negative_slope,
    g_n, g_c, g_h, g_w,
    x_n, x_c, x_h, x_w,
    r_n, r_c, r_h, r_w,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    C, W = extents(C, W, ALIGN)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    center = _vector(mean, c, C, True, 0.0)
    inverse = _vector(invstd, c, C, True, 0.0)
    scale = inverse * _vector(weight, c, C, HAS_WEIGHT, 1.0)
    shift = _vector(bias, c, C, HAS_BIAS, 0.0)
    total = tl.zeros((BLOCK_C,), tl.float32)
    dot = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.program_id(0) * per_part
    for tile in range(first, tl.minimum(first + per_part, tiles)):
        n, y, px = tile_position(tile, H, W, TILE_H, TILE_W)
        mask = ((y < H) & (px < W))[:, None] & (c < C)[None, :]
        value, deviation = _gradient(
            grad, x, residual, n, y, px, c, mask, center, scale, shift, g_strides, x_strides, r_strides,
            negative_slope, HAS_RESIDUAL, ACTIVATION, WIDE,
        )  # fmt: skip
        # a masked gradient is zero, so that its product is too
        total += tl.sum(value, 0)
        dot += tl.sum(value * deviation, 0)
    row = parts + tl.program_id(0).to(tl.int64) * 2 * C + c
    tl.store(row, total, mask=c < C)
    tl.store(row + C, dot * inverse, mask=c < C)


@kernel
def batch_norm_activation_bwd_kernel(
    grad,  # [N, C, H, W]
    x,  # [N, C, H, W]
    mean,  # [C] float32, likewise the next five
    invstd,
    weight,
    bias,
    mean_grad,
    mean_dot,
    residual,  # [N, C, H, W]
    grad_x,  # [N, C, H, W]
    grad_residual,  # [N, C, H, W]
    C,
    H,
    W,
    negative_slope,
    g_n, g_c, g_h, g_w,
    x_n, x_c, x_h, x_w,
    r_n, r_c, r_h, r_w,
    o_n, o_c, o_h, o_w,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    OF_X: tl.constexpr,
    OF_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    g_strides = aligned(g_n, g_c, g_h, g_w, ALIGN)
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    r_strides = aligned(r_n, r_c, r_h, r_w, ALIGN)
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    C, W = extents(C, W, ALIGN)
    n, y, px = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = ((y < H) & (px < W))[:, None] & (c < C)[None, :]
    inverse = _vector(invstd, c, C, True, 0.0)
    scale = inverse * _vector(weight, c, C, HAS_WEIGHT, 1.0)
    value, deviation = _gradient(
        grad, x, residual, n, y, px, c, mask, _vector(mean, c, C, True, 0.0), scale,
        _vector(bias, c, C, HAS_BIAS, 0.0), g_strides, x_strides, r_strides, negative_slope,
        HAS_RESIDUAL, ACTIVATION, WIDE,
    )  # fmt: skip
    place = n * o_strides[0] + offsets(y, px, c, o_strides, WIDE)
    if OF_RESIDUAL:
        tl.store(grad_residual + place, value.to(grad_residual.dtype.element_ty), mask=mask)
    if OF_X:
        offset = _vector(mean_grad, c, C, True, 0.0)
        factor = _vector(mean_dot, c, C, True, 0.0) * inverse
        value = (value - offset[None, :] - deviation * factor[None, :]) * scale[None, :]
        tl.store(grad_x + place, value.to(grad_x.dtype.element_ty), mask=mask)


def _rows(x: Tensor) -> bool:
    """Whether rows, not channels, are what threads read next to each other."""
    return layout_class(x) == "nchw"


def _tile_of(x: Tensor) -> tuple[Tile, int, int]:
    """The tile, and how many tiles of pixels and blocks of channels there are."""
    tile = choose("batch_norm_activation", "all", layout_class(x), x)
    n, c, height, width = x.shape
    tiles = n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width)
    return tile, tiles, triton.cdiv(c, tile.outer)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    _, c, height, width = x.shape
    mean, squares = (x.new_zeros(c, dtype=torch.float32) for _ in range(2))
    tile, tiles, blocks = _tile_of(x)
    if tiles == 0:
        return mean, squares
    each = max(_LEAST_TILES, triton.cdiv(tiles, _MOST_PARTS))
    programs = triton.cdiv(tiles, each)
    parts = x.new_empty((programs, 3, c), dtype=torch.float32)
    with guard(x):
        batch_norm_statistics_kernel[(programs, blocks)](
            x, parts, c, height, width, tiles, each, *x.stride(),
            TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
            ALIGN=alignment(x, rows=_rows(x)), WIDE=needs_wide_index(x), **tile.options(),
        )  # fmt: skip
        batch_norm_combine_kernel[(triton.cdiv(c, _COLUMNS),)](
            parts, mean, squares, programs, c, ROWS=_ROWS, BLOCK_C=_COLUMNS,
            ALIGN=divisor(c), num_warps=4, num_stages=1,
        )  # fmt: skip
    return mean, squares


def forward(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    group: str,
) -> Tensor:
    _, c, height, width = x.shape
    out = empty_like_format(x, x.shape)
    tile, tiles, blocks = _tile_of(x)
    if tiles == 0:
        return out
    skip = x if residual is None else residual
    with guard(x):
        batch_norm_activation_fwd_kernel[(tiles, blocks)](
            x, *_vectors(mean, invstd, weight, bias), skip, out, c, height, width, negative_slope,
            *x.stride(), *skip.stride(), *out.stride(),
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
            ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
            ALIGN=alignment(x, skip, out, rows=_rows(x)), WIDE=needs_wide_index(x, skip, out), **tile.options(),
        )  # fmt: skip
    return out


def _vectors(mean: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """Contiguous; the mean in the place of what is missing, where nothing is read."""
    return tuple((mean if v is None else v).contiguous() for v in (mean, *others))


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    _, c, height, width = x.shape
    tile, tiles, blocks = _tile_of(x)
    if tiles == 0:
        return mean.new_zeros(c), mean.new_zeros(c)
    each = max(_LEAST_TILES, triton.cdiv(tiles, _MOST_PARTS))
    programs = triton.cdiv(tiles, each)
    parts = mean.new_empty((programs, 2, c))
    skip = x if residual is None else residual
    with guard(x):
        batch_norm_activation_bwd_reduce_kernel[(programs, blocks)](
            grad, x, *_vectors(mean, invstd, weight, bias), skip, parts, c, height, width, tiles, each, negative_slope,
            *grad.stride(), *x.stride(), *skip.stride(),
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
            ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
            ALIGN=alignment(grad, x, skip, rows=_rows(x)), WIDE=needs_wide_index(grad, x, skip), **tile.options(),
        )  # fmt: skip
        sums = sum_parts(parts, mean.new_empty((2, c)))
    # outputs of an op must not share storage
    return sums[0].clone(), sums[1].clone()


def backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean_grad: Tensor,
    mean_dot: Tensor,
    activation: int,
    negative_slope: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    _, c, height, width = x.shape
    grad_x, grad_residual = (empty_like_format(x, x.shape) if wanted else x.new_empty(0) for wanted in output_mask)
    tile, tiles, blocks = _tile_of(x)
    if tiles == 0 or not any(output_mask):
        return grad_x, grad_residual
    skip = x if residual is None else residual
    out = grad_x if output_mask[0] else grad_residual
    with guard(x):
        batch_norm_activation_bwd_kernel[(tiles, blocks)](
            grad, x, *_vectors(mean, invstd, weight, bias, mean_grad, mean_dot), skip, grad_x, grad_residual,
            c, height, width, negative_slope, *grad.stride(), *x.stride(), *skip.stride(), *out.stride(),
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
            OF_X=output_mask[0], OF_RESIDUAL=output_mask[1],
            ACTIVATION=activation, TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.outer,
            ALIGN=alignment(grad, x, skip, out, rows=_rows(x)), WIDE=needs_wide_index(grad, x, skip, out),
            **tile.options(),
        )  # fmt: skip
    return grad_x, grad_residual
