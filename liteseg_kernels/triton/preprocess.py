"""preprocess - uint8 picture -> bilinear resize (half-pixel centres) -> / 255, - mean, / std, in one launch.

Replaces: permute, cast, F.interpolate, three elementwise operations and a cast; the float picture is never stored
Shapes:   image [N, H, W, C] uint8, any strides -> out [N, C, HO, WO], NCHW or channels_last
Traffic:  minimum N*C*H*W + N*C*HO*WO * sizeof(T); eager moves about 10 * N*C*HO*WO floats more
Bound:    memory; not timed on its own yet
Launch:   grid (N * pixel tiles), four channels a launch; tiles.csv has one row
Numerics: float32 coordinates (torch's rules) and values, rounded once; mean and std become a factor and an offset in
          double precision on the host. Deterministic
Limits:   to float32, float16, bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    aligned,
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

# channels of one launch: the code repeats for each
_CHANNELS = 4


@kernel
def preprocess_kernel(
    image,  # [N, H, W, CHANNELS] uint8
    out,  # [N, CHANNELS, HO, WO]
    H,
    W,
    HO,
    WO,
    i_n, i_h, i_w, i_c,
    o_n, o_c, o_h, o_w,
    scale_h,
    scale_w,
    factors,  # CHANNELS floats: 1 / (255 std)
    shifts,  # CHANNELS floats: -mean / std
    CHANNELS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    o_n, o_c, o_h, o_w = aligned(o_n, o_c, o_h, o_w, ALIGN)
    _, WO = extents(HO, WO, ALIGN)
    n, y, x = tile_position(tl.program_id(0), HO, WO, TILE_H, TILE_W)
    inside = (y < HO) & (x < WO)
    top, bottom, fy = resize_source(y, H, scale_h, False)
    left, right, fx = resize_source(x, W, scale_w, False)
    top = widen(top, WIDE) * i_h
    bottom = widen(bottom, WIDE) * i_h
    left = widen(left, WIDE) * i_w
    right = widen(right, WIDE) * i_w
    plane = image + n * i_n
    pointers = out + n * o_n + widen(y, WIDE) * o_h + widen(x, WIDE) * o_w
    for k in tl.static_range(CHANNELS):
        a = tl.load(plane + top + left, mask=inside, other=0).to(tl.float32)
        b = tl.load(plane + top + right, mask=inside, other=0).to(tl.float32)
        c = tl.load(plane + bottom + left, mask=inside, other=0).to(tl.float32)
        d = tl.load(plane + bottom + right, mask=inside, other=0).to(tl.float32)
        value = (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)
        tl.store(pointers, (value * factors[k] + shifts[k]).to(out.dtype.element_ty), mask=inside)
        plane += i_c
        pointers += o_c


def forward(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    n, h, w, channels = image.shape
    height, width = size
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((n, channels, height, width), dtype=dtype, device=image.device, memory_format=memory_format)
    if n == 0:
        return out
    tile = choose("preprocess", "forward", "any", image)
    with guard(image):
        for first in range(0, channels, _CHANNELS):
            chosen = slice(first, first + _CHANNELS)
            source, target = image[..., chosen], out[:, chosen]
            preprocess_kernel[(n * triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width),)](
                source, target, h, w, height, width, *source.stride(), *target.stride(),
                resize_scale(h, height, False), resize_scale(w, width, False),
                tuple(1 / (255 * s) for s in std[chosen]),
                tuple(-m / s for m, s in zip(mean[chosen], std[chosen], strict=True)),
                CHANNELS=target.shape[1], TILE_H=tile.height, TILE_W=tile.width,
                ALIGN=-1 if channels_last else alignment(target, rows=True),
                WIDE=needs_wide_index(source, target), **tile.options(),
            )  # fmt: skip
    return out
