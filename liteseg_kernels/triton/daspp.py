"""daspp - the atrous pyramid with its image pooling and projection, weights folded (paper, section III-A).

Replaces: per rate four F.conv2d, the pooled branch, the concatenation of C + 5 F channels and its projection
Shapes:   x [N, C, H, W], branches of F channels at any rates, any number of them -> out [N, CO, H, W] in x's memory
          format; any strides in
Traffic:  minimum (N*C*H*W + N*CO*H*W) * sizeof(T) and the weights; besides, the first layer's maps are written and read
          in float32 parts (4 * splits * N*H*W*F bytes a map) and once in T; so are parts of the projection, one a map
Bound:    latency at 12 x 20, weights from L2 at 32 x 64; not timed on its own yet
Launch:   six. `first`: grid (N * pixel tiles, blocks of F, C splits) reads x once for the linear path, the 1x1 branch,
          all atrous branches and the sums of the pooled one (_SLOTS maps a launch: their accumulators fill the
          registers). `collect`: the parts in order, to T. The sums, and `pool`: the pooled branch, one vector an image.
          `project`: grid (N * pixel tiles, blocks of CO, branches): the second depthwise, pointwise and ReLU, and from
          the registers straight into the projection. `finish`: the branches' parts in order; the pooled branch is a
          bias an image
Numerics: float32 taps and accumulation; rounded to T where stored and where a product takes its operand. C is cut at
          places that follow from the shape and the device, and added in order: deterministic
Backward: composed of single layers and separable_conv2d's backward; the branches are computed again, in float32, so
          that every ReLU cuts where the float32 reference does, and their gradients are float32 down to the first layer
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
    MOST_SPLITS,
    activate,
    aligned,
    alignment,
    block,
    divisor,
    dot_precision,
    guard,
    kernel,
    needs_wide_index,
    offsets,
    product,
    splits_of,
    sum_parts,
    summed,
    tile_position,
)
from ._separable_backward import backward as separable_backward
from ._separable_backward import bias_gradient, pre_activation_gradient
from ._tiles import choose, width_class
from .separable_conv2d import launch_forward

_NONE, _RELU = 0, 1
# maps of one launch of the first layer
_SLOTS = {"half": 4, "single": 2}


@triton.jit
def _depthwise(
    image,  # one image of [C, H, W]
    weight,  # [C, 1, 3, 3], contiguous
    y,
    x,
    c,
    rate,
    C,
    H,
    W,
    strides,
    WIDE: tl.constexpr,
):
    """The 3 x 3 depthwise convolution, padded by its rate, at pixels (y, x) and channels c: [P, BC] float32."""
    total = tl.zeros((y.shape[0], c.shape[0]), tl.float32)
    # not unrolled: the taps of all branches at once would not fit the registers
    for tap in range(9):
        oy = y + (tap // 3 - 1) * rate
        ox = x + (tap % 3 - 1) * rate
        inside = (oy >= 0) & (oy < H) & (ox >= 0) & (ox < W)
        pointers = image + offsets(oy, ox, c, strides, WIDE)
        value = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        total += value * tl.load(weight + c * 9 + tap, mask=c < C, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def _first_layer(
    acc,  # [P, BO]
    image,
    center,  # [P, BC] float32, x at the pixels themselves
    depthwise,  # [C, 1, 3, 3], contiguous, or None: a 1x1 map
    weight,  # [width, C, 1, 1], contiguous
    y,
    x,
    c,
    o,
    rate,
    width,
    C,
    H,
    W,
    x_strides,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    value = center
    if depthwise is not None:
        value = _depthwise(image, depthwise, y, x, c, rate, C, H, W, x_strides, WIDE)
    w = tl.load(weight + o[None, :] * C + c[:, None], mask=(c < C)[:, None] & (o < width)[None, :], other=0.0)
    return product(value.to(w.dtype), w, acc, PRECISION)


@kernel
def daspp_first_kernel(
    x,  # [N, C, H, W]
    depthwise,  # SLOTS of [C, 1, 3, 3], contiguous, or None
    pointwise,  # SLOTS of [width, C, 1, 1], contiguous
    bias,  # SLOTS of [width] or None
    parts,  # [SLOTS, splits, N, H, W, WIDTH] float32, contiguous
    sums,  # [pixel tiles of an image, N, C] float32, contiguous, or None: sums of x over each tile
    rates,
    widths,
    N,
    C,
    H,
    W,
    WIDTH,
    x_n, x_c, x_h, x_w,
    splits,
    SLOTS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    x_strides = aligned(x_n, x_c, x_h, x_w, ALIGN)
    C = C // ALIGN * ALIGN
    WIDTH = WIDTH // ALIGN_WIDTH * ALIGN_WIDTH
    n, oy, ox = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    inside = (oy < H) & (ox < W)
    image = x + n * x_strides[0]
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    part = tl.program_id(2)
    steps = tl.cdiv(tl.cdiv(C, BLOCK_C), splits)
    tile = tl.program_id(0) % (tl.cdiv(H, TILE_H) * tl.cdiv(W, TILE_W))
    accs = (tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32),) * SLOTS
    for step in range(part * steps, (part + 1) * steps):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        pointers = image + offsets(oy, ox, c, x_strides, WIDE)
        center = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        if sums is not None:
            if tl.program_id(1) == 0:
                row = sums + (tile.to(tl.int64) * N + n) * C
                tl.store(row + c, tl.sum(center, 0), mask=c < C)
        updated = ()
        for slot in tl.static_range(SLOTS):
            acc = _first_layer(
                accs[slot], image, center, depthwise[slot], pointwise[slot], oy, ox, c, o, rates[slot],
                widths[slot], C, H, W, x_strides, PRECISION, WIDE,
            )  # fmt: skip
            updated = updated + (acc,)  # type: ignore[assignment]
        accs = updated
    pixels = n * H * W * WIDTH + offsets(oy, ox, o, (0, 1, W * WIDTH, WIDTH), WIDE)
    size = tl.cast(N, tl.int64) * H * W * WIDTH
    for slot in tl.static_range(SLOTS):
        acc = accs[slot]
        mask = o < widths[slot]
        if bias[slot] is not None:
            # once, with the first part
            if part == 0:
                acc += tl.load(bias[slot] + o, mask=mask, other=0.0).to(tl.float32)[None, :]
        pointers = parts + (slot * splits + part) * size + pixels
        tl.store(pointers, acc, mask=inside[:, None] & mask[None, :])


@kernel
def daspp_collect_kernel(
    parts,  # [MAPS, splits, N, H, W, WIDTH] float32, contiguous
    maps,  # [MAPS, N, H, W, F], contiguous
    size,  # N * H * W
    F,
    WIDTH,
    activated,  # maps before this one get a ReLU
    splits,
    MOST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
):
    F = F // ALIGN * ALIGN
    WIDTH = WIDTH // ALIGN * ALIGN
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    index = tl.program_id(2)
    mask = (p < size)[:, None] & (o < F)[None, :]
    whole = tl.cast(size, tl.int64) * WIDTH
    value = summed(parts + index * splits * whole, whole, p[:, None] * WIDTH + o[None, :], mask, splits, MOST)
    value = tl.where((index < activated) & (value < 0.0), 0.0, value)
    pointers = maps + (index * tl.cast(size, tl.int64) + p)[:, None] * F + o[None, :]
    tl.store(pointers, value.to(maps.dtype.element_ty), mask=mask)


@kernel
def daspp_pool_kernel(
    sums,  # [N, C] float32, contiguous: of x over the pixels
    weight,  # [F, C, 1, 1], contiguous
    bias,  # [F]
    pooled,  # [N, F] float32, contiguous
    C,
    F,
    pixels,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
):
    C = C // ALIGN * ALIGN
    n = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    acc = tl.zeros((BLOCK_O,), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mean = tl.load(sums + n * C + c, mask=c < C, other=0.0) / pixels
        w = tl.load(weight + o[:, None] * C + c[None, :], mask=(o < F)[:, None] & (c < C)[None, :], other=0.0)
        acc += tl.sum(w.to(tl.float32) * mean[None, :], 1)
    acc = activate(acc + tl.load(bias + o, mask=o < F, other=0.0).to(tl.float32), 1, 0.0)
    tl.store(pooled + n * F + o, acc, mask=o < F)


@kernel
def daspp_project_kernel(
    maps,  # [MAPS, N, H, W, F], contiguous
    depthwise,  # MAPS of [F, 1, 3, 3], contiguous, or None: the map joins as it is
    pointwise,  # MAPS of [F, F, 1, 1], contiguous, or None
    pointwise_bias,  # MAPS of [F] or None
    project,  # [CO, (MAPS + 1) * F, 1, 1], contiguous: the pooled branch last
    parts,  # [MAPS, N, H, W, CO] float32, contiguous
    N,
    H,
    W,
    F,
    CO,
    MAPS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_F: tl.constexpr,
    WIDE: tl.constexpr,
):
    CO = CO // ALIGN * ALIGN
    F = F // ALIGN_F * ALIGN_F
    n, oy, ox = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    inside = (oy < H) & (ox < W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    rows = project + o * ((MAPS + 1) * F)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_O), tl.float32)
    strides = (tl.cast(H, tl.int64) * W * F, 1, W * F, F)
    # the maps are shared by programs: one after another they would take most of the op's time on few of them
    for index in tl.static_range(MAPS):
        if tl.program_id(2) == index:
            source = maps + (index * tl.cast(N, tl.int64) + n) * strides[0]
            if depthwise[index] is None:
                for first in range(0, F, BLOCK_C):
                    c = first + tl.arange(0, BLOCK_C)
                    pointers = source + offsets(oy, ox, c, strides, WIDE)
                    value = tl.load(pointers, mask=inside[:, None] & (c < F)[None, :], other=0.0)
                    pointers = rows[None, :] + index * F + c[:, None]
                    w = tl.load(pointers, mask=(c < F)[:, None] & (o < CO)[None, :], other=0.0)
                    acc = product(value, w, acc, PRECISION)
            else:
                for first_f in range(0, F, BLOCK_F):
                    f = first_f + tl.arange(0, BLOCK_F)
                    branch = tl.zeros((TILE_H * TILE_W, BLOCK_F), tl.float32)
                    for first in range(0, F, BLOCK_C):
                        c = first + tl.arange(0, BLOCK_C)
                        between = _depthwise(source, depthwise[index], oy, ox, c, 1, F, H, W, strides, WIDE)
                        pointers = pointwise[index] + f[None, :] * F + c[:, None]
                        w = tl.load(pointers, mask=(c < F)[:, None] & (f < F)[None, :], other=0.0)
                        branch = product(between.to(w.dtype), w, branch, PRECISION)
                    branch += tl.load(pointwise_bias[index] + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
                    branch = activate(branch, 1, 0.0)
                    pointers = rows[None, :] + index * F + f[:, None]
                    w = tl.load(pointers, mask=(f < F)[:, None] & (o < CO)[None, :], other=0.0)
                    acc = product(branch.to(w.dtype), w, acc, PRECISION)
    image = parts + (tl.program_id(2) * tl.cast(N, tl.int64) + n) * H * W * CO
    tl.store(image + offsets(oy, ox, o, (0, 1, W * CO, CO), WIDE), acc, mask=inside[:, None] & (o < CO)[None, :])


@kernel
def daspp_finish_kernel(
    parts,  # [MAPS, N, H, W, CO] float32, contiguous
    direct,  # [splits, N, H, W, WIDTH] float32, contiguous, or None
    pooled,  # [N, F] float32, contiguous
    project,  # [CO, (MAPS + 1) * F, 1, 1], contiguous: the pooled branch last
    bias,  # [CO]
    out,  # [N, CO, H, W]
    N,
    H,
    W,
    F,
    CO,
    WIDTH,
    o_n, o_c, o_h, o_w,
    splits,
    MAPS: tl.constexpr,
    MOST: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_O: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_F: tl.constexpr,
    ALIGN_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    o_strides = aligned(o_n, o_c, o_h, o_w, ALIGN)
    CO = CO // ALIGN * ALIGN
    F = F // ALIGN_F * ALIGN_F
    WIDTH = WIDTH // ALIGN_WIDTH * ALIGN_WIDTH
    n, oy, ox = tile_position(tl.program_id(0), H, W, TILE_H, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    mask = ((oy < H) & (ox < W))[:, None] & (o < CO)[None, :]
    pixels = tl.cast(H, tl.int64) * W
    index = n * pixels * CO + offsets(oy, ox, o, (0, 1, W * CO, CO), WIDE)
    acc = summed(parts, N * pixels * CO, index, mask, MAPS, MAPS)
    if direct is not None:
        index = n * pixels * WIDTH + offsets(oy, ox, o, (0, 1, W * WIDTH, WIDTH), WIDE)
        acc += summed(direct, N * pixels * WIDTH, index, mask, splits, MOST)
    # the pooled branch is the same at every pixel
    shift = tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)
    columns = project + (o * ((MAPS + 1) * F))[None, :] + MAPS * F
    for first in range(0, F, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        value = tl.load(pooled + n * F + f, mask=f < F, other=0.0)
        w = tl.load(columns + f[:, None], mask=(f < F)[:, None] & (o < CO)[None, :], other=0.0)
        shift += tl.sum(w.to(tl.float32) * value[:, None], 0)
    acc = activate(acc + shift[None, :], 1, 0.0)
    pointers = out + n * o_strides[0] + offsets(oy, ox, o, o_strides, WIDE)
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    direct_weight: Tensor | None,
    point_weight: Tensor | None,
    point_bias: Tensor | None,
    atrous_depthwise: Sequence[Tensor],
    atrous_pointwise: Sequence[Tensor],
    atrous_bias: Sequence[Tensor],
    deep_depthwise: Sequence[Tensor],
    deep_pointwise: Sequence[Tensor],
    deep_bias: Sequence[Tensor],
    pool_weight: Tensor,
    pool_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    rates: Sequence[int],
) -> Tensor:
    n, c, h, w = x.shape
    filters, out_channels = pool_weight.shape[0], project_weight.shape[0]
    out = empty_like_format(x, (n, out_channels, h, w))
    if n == 0:
        return out
    # (depthwise, pointwise, bias, rate) of the maps that the first layer makes of x; the linear path's, in front, stays
    # in parts
    slots: list[tuple[Tensor | None, Tensor, Tensor | None, int]] = []
    if direct_weight is not None:
        slots.append((None, direct_weight, None, 1))
    if point_weight is not None:
        slots.append((None, point_weight, point_bias, 1))
    slots += zip(atrous_depthwise, atrous_pointwise, atrous_bias, rates, strict=True)
    lead = 0 if direct_weight is None else 1
    count = len(slots) - lead
    width = max(s[1].shape[0] for s in slots)

    def contiguous(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return tuple(t if t is None else t.contiguous() for t in tensors)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    with guard(x):
        tile = choose("daspp", "first", x.dtype, x, width)
        per_image, blocks = triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), triton.cdiv(width, tile.outer)
        splits = splits_of(n * per_image * blocks, triton.cdiv(c, tile.inner), x)
        parts = new(len(slots), splits, n, h, w, width)
        sums = new(per_image, n, c)
        most = _SLOTS[width_class(x.dtype)]
        for first in range(0, len(slots), most):
            chosen = slots[first : first + most]
            depthwise, pointwise, bias = (contiguous(column) for column in list(zip(*chosen, strict=True))[:3])
            daspp_first_kernel[n * per_image, blocks, splits](
                x, depthwise, pointwise, bias, parts[first : first + len(chosen)], None if first else sums,
                tuple(s[3] for s in chosen), tuple(s[1].shape[0] for s in chosen), n, c, h, w, width,
                *x.stride(), splits, SLOTS=len(chosen), TILE_H=tile.height, TILE_W=tile.width, BLOCK_C=tile.inner,
                BLOCK_O=tile.outer, PRECISION=dot_precision(x), ALIGN=alignment(x), ALIGN_WIDTH=divisor(width),
                WIDE=needs_wide_index(x, parts[0, 0].permute(0, 3, 1, 2)), **tile.options(),
            )  # fmt: skip

        maps = new(count, n, h, w, filters, dtype=x.dtype)
        activated = (point_weight is not None) if deep_depthwise else count
        tile = choose("daspp", "collect", x.dtype, x, filters)
        pixels = tile.height * tile.width
        daspp_collect_kernel[triton.cdiv(n * h * w, pixels), triton.cdiv(filters, tile.outer), count](
            parts[lead:], maps, n * h * w, filters, width, int(activated), splits, MOST=MOST_SPLITS, BLOCK_P=pixels,
            BLOCK_O=tile.outer, ALIGN=divisor(filters, width), **tile.options(),
        )  # fmt: skip

        tile = choose("daspp", "pool", x.dtype, x, filters)
        pooled = new(n, filters)
        daspp_pool_kernel[n, triton.cdiv(filters, tile.outer)](
            sum_parts(sums, new(n, c)), pool_weight.contiguous(), pool_bias.contiguous(), pooled, c, filters, h * w,
            BLOCK_C=tile.inner, BLOCK_O=tile.outer, ALIGN=divisor(c), **tile.options(),
        )  # fmt: skip

        tile = choose("daspp", "project", x.dtype, x, max(filters, out_channels))
        shallow = (None,) * (count - len(deep_depthwise))
        deep = (contiguous((*shallow, *tensors)) for tensors in (deep_depthwise, deep_pointwise, deep_bias))
        project, parts_of_maps = project_weight.contiguous(), new(count, n, h, w, out_channels)
        align_f = divisor(filters)
        daspp_project_kernel[
            n * triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), triton.cdiv(out_channels, tile.outer), count
        ](
            maps, *deep, project, parts_of_maps, n, h, w, filters, out_channels, MAPS=count, TILE_H=tile.height,
            TILE_W=tile.width, BLOCK_C=tile.inner, BLOCK_F=block(filters, tile.outer), BLOCK_O=tile.outer,
            PRECISION=dot_precision(x), ALIGN=divisor(out_channels), ALIGN_F=align_f,
            WIDE=needs_wide_index(*(m[0].permute(0, 3, 1, 2) for m in (maps, parts_of_maps))), **tile.options(),
        )  # fmt: skip

        tile = choose("daspp", "finish", x.dtype, x, out_channels)
        daspp_finish_kernel[
            n * triton.cdiv(h, tile.height) * triton.cdiv(w, tile.width), triton.cdiv(out_channels, tile.outer)
        ](
            parts_of_maps, parts[0] if lead else None, pooled, project, project_bias.contiguous(), out, n, h, w,
            filters, out_channels, width, *out.stride(), splits, MAPS=count, MOST=MOST_SPLITS, TILE_H=tile.height,
            TILE_W=tile.width, BLOCK_F=tile.inner, BLOCK_O=tile.outer, ALIGN=alignment(out), ALIGN_F=align_f,
            ALIGN_WIDTH=divisor(width), WIDE=needs_wide_index(out, parts[0, 0].permute(0, 3, 1, 2)), **tile.options(),
        )  # fmt: skip
    return out


def _branches(
    x: Tensor, atrous: Sequence[Sequence[Tensor]], deep: Sequence[Sequence[Tensor]], rates: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Per rate the map after the first convolution and the one that ends the branch, in float32."""
    source = x.float()
    branches = []
    for index, (weights, rate) in enumerate(zip(atrous, rates, strict=True)):
        depthwise, pointwise, bias = (t.float() for t in weights)
        middle = last = launch_forward(
            source, depthwise, None, pointwise, bias, None, (1, 1), (rate, rate), (rate, rate), _NONE,
            _NONE if deep else _RELU, 0.0,
        )  # fmt: skip
        if deep:
            depthwise, pointwise, bias = (t.float() for t in deep[index])
            last = launch_forward(
                middle, depthwise, None, pointwise, bias, None, (1, 1), (1, 1), (1, 1), _NONE, _RELU, 0.0
            )
        branches.append((middle, last))
    return branches


def backward(
    grad: Tensor,
    x: Tensor,
    direct_weight: Tensor | None,
    point_weight: Tensor | None,
    point_bias: Tensor | None,
    atrous_depthwise: Sequence[Tensor],
    atrous_pointwise: Sequence[Tensor],
    atrous_bias: Sequence[Tensor],
    deep_depthwise: Sequence[Tensor],
    deep_pointwise: Sequence[Tensor],
    deep_bias: Sequence[Tensor],
    pool_weight: Tensor,
    pool_bias: Tensor,
    project_weight: Tensor,
    output: Tensor,
    rates: Sequence[int],
) -> list[Tensor]:
    n, c, h, w = x.shape
    filters, out_channels = pool_weight.shape[0], project_weight.shape[0]
    grad_x = empty_like_format(x, x.shape)
    weights = [
        *(t for t in (direct_weight, point_weight, point_bias) if t is not None),
        *(*atrous_depthwise, *atrous_pointwise, *atrous_bias, *deep_depthwise, *deep_pointwise, *deep_bias),
        *(pool_weight, pool_bias, project_weight),
    ]
    if n == 0:
        return [grad_x, *(x.new_zeros(t.shape) for t in weights), x.new_zeros(out_channels)]

    atrous = list(zip(atrous_depthwise, atrous_pointwise, atrous_bias, strict=True))
    deep = list(zip(deep_depthwise, deep_pointwise, deep_bias, strict=True))
    lead: list[Tensor] = []
    grad_atrous: list[Sequence[Tensor]] = []
    grad_deep: list[Sequence[Tensor]] = []
    grad_project: list[Tensor] = []

    with guard(x):
        gated = layers.nhwc(x, grad.shape)
        pre_activation_gradient(grad, output, gated, _RELU, 0.0)

        def through_projection(last: Tensor, gate: Tensor | None) -> Tensor:
            """The gradient of one branch; appends that of its slice of the projection."""
            first = len(grad_project) * filters
            part = x.new_empty(out_channels, filters, 1, 1)
            grad_project.append(layers.pointwise_weight_gradient(gated, None, last, part, 1, _NONE, 0.0))
            weight = project_weight[:, first : first + filters]
            # float32 up to the first layer: rounded once more, a map would leave little of gradients that nearly cancel
            out = layers.nhwc(x, (n, filters, h, w), torch.float32)
            return layers.pointwise_input_gradient(gated, None, weight, None, gate, out, 1, _RELU, 0.0)

        # the pooled branch: images take the place of pixels, in float32
        def as_map(t: Tensor) -> Tensor:
            return t.t()[None, :, None, :]

        mean = as_map(x.mean((2, 3), dtype=torch.float32))
        sums = as_map(gated.sum((2, 3), dtype=torch.float32))
        weight, project = pool_weight.float(), project_weight[:, -filters:].float()
        pooled, grad_pooled = (layers.nhwc(x, (1, filters, 1, n), torch.float32) for _ in range(2))
        layers.pointwise(mean, weight, pool_bias, pooled, 1, _RELU, 0.0)
        layers.pointwise_input_gradient(sums, None, project, None, pooled, grad_pooled, 1, _RELU, 0.0)
        grad_mean = layers.nhwc(x, mean.shape, torch.float32)
        layers.pointwise_input_gradient(grad_pooled, None, weight, None, None, grad_mean, 1, _NONE, 0.0)
        tail = [
            layers.pointwise_weight_gradient(grad_pooled, None, mean, x.new_empty(pool_weight.shape), 1, _NONE, 0.0),
            bias_gradient(grad_pooled, grad_pooled, x.new_empty(filters), _NONE, 0.0),
        ]
        grad_last = layers.pointwise_weight_gradient(
            sums, None, pooled, x.new_empty(out_channels, filters, 1, 1), 1, _NONE, 0.0
        )

        # float32 until every path has been added; a product adds what is there to what it writes there
        total = layers.nhwc(x, x.shape, torch.float32)
        total.copy_((grad_mean[0, :, 0].t() / (h * w))[:, :, None, None].expand(x.shape))
        if direct_weight is not None:
            layers.pointwise_input_gradient(gated, None, direct_weight, total, None, total, 1, _NONE, 0.0)
            lead.append(
                layers.pointwise_weight_gradient(gated, None, x, x.new_empty(direct_weight.shape), 1, _NONE, 0.0)
            )
        if point_weight is not None:
            last = layers.nhwc(x, (n, filters, h, w), torch.float32)
            layers.pointwise(x, point_weight, point_bias, last, 1, _RELU, 0.0)
            grad_branch = through_projection(last, last).to(x.dtype)
            layers.pointwise_input_gradient(grad_branch, None, point_weight, total, None, total, 1, _NONE, 0.0)
            lead += [
                layers.pointwise_weight_gradient(grad_branch, None, x, x.new_empty(point_weight.shape), 1, _NONE, 0.0),
                bias_gradient(grad_branch, grad_branch, x.new_empty(filters), _NONE, 0.0),
            ]
        mask = (True, True, True, True, False)
        for index, (middle, last) in enumerate(_branches(x, atrous, deep, rates)):
            grad_branch = through_projection(last, None if deep else last)
            if deep:
                depthwise, pointwise = (t.float() for t in deep[index][:2])
                grad_branch, *grads, _ = separable_backward(
                    grad_branch, middle, depthwise, pointwise, last, (1, 1), (1, 1), (1, 1), _RELU, 0.0, mask
                )
                grad_deep.append(grads)
            dilation, grad_branch = (rates[index], rates[index]), grad_branch.to(x.dtype)
            grad_source, *grads, _ = separable_backward(
                grad_branch, x, *atrous[index][:2], grad_branch, (1, 1), dilation, dilation, _NONE, 0.0, mask
            )
            grad_atrous.append(grads)
            total += grad_source
        grad_x.copy_(total)
    return [
        grad_x,
        *lead,
        *(g[part].to(x.dtype) for part in range(3) for g in grad_atrous),
        *(g[part].to(x.dtype) for part in range(3) for g in grad_deep),
        *tail,
        torch.cat((*grad_project, grad_last), 1),
        sums.sum((0, 2, 3)).to(x.dtype),
    ]
