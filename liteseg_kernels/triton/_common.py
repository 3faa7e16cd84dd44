"""What the Triton kernels share: device functions, the fixed-order reduction, and the launchers' small decisions."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._tiles import Tile as Tile

# a wider index is used from here on; offsets are counted in elements
_INT32_MAX = 2**31 - 1


def guard(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device current for the launches inside; nothing to do for CPU tensors (interpreter)."""
    return torch.cuda.device_of(x) if x.is_cuda else contextlib.nullcontext()


def dot_precision(x: Tensor) -> str:
    """`input_precision` of products: exact, unless torch may round float32 products to tf32, those of matrices (which
    it may not by default: torch.backends.cuda.matmul.allow_tf32) and those of convolutions (which it may by default:
    torch.backends.cudnn.allow_tf32). Either switch keeps float32 exact."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    allowed = (torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision)
    return "tf32" if x.dtype == torch.float32 and allowed == ("tf32", "tf32") else "ieee"


def needs_wide_index(*tensors: Tensor | None) -> bool:
    """Whether an offset inside one image of some tensor may not fit int32."""
    return any(
        sum((size - 1) * abs(stride) for size, stride in zip(t.shape[1:], t.stride()[1:], strict=True)) > _INT32_MAX
        for t in tensors
        if t is not None and t.numel() > 0
    )


def block(extent: int, largest: int) -> int:
    """The smallest power of two that holds `extent`, between 16 (least side of a matrix product) and `largest`."""
    return min(max(16, triton.next_power_of_2(extent)), largest)


def alignment(*tensors: Tensor | None) -> int:
    """The power of two, 16 at most, that divides channels and pixel strides of all channels_last tensors given.

    Triton itself notices divisibility by 16 only, and 24 or 120 channels would be loaded one by one.
    """
    known = [t for t in tensors if t is not None]
    return math.gcd(16, *(v for t in known for v in (t.shape[1], t.stride(0), t.stride(2), t.stride(3))))


@triton.jit
def aligned(strides, ALIGN: tl.constexpr):
    """The strides (n, c, h, w), all but c's seen by the compiler as multiples of ALIGN."""
    return (
        strides[0] // ALIGN * ALIGN,
        strides[1],
        strides[2] // ALIGN * ALIGN,
        strides[3] // ALIGN * ALIGN,
    )


@triton.jit
def activate(v, ACTIVATION: tl.constexpr, negative_slope):
    # comparisons, not minimum/maximum: NaN passes, as it does in torch
    if ACTIVATION == 1:
        v = tl.where(v < 0.0, 0.0, v)
    elif ACTIVATION == 2:
        v = tl.where(v < 0.0, 0.0, tl.where(v > 6.0, 6.0, v))
    elif ACTIVATION == 3:
        v = tl.where(v > 0.0, v, v * negative_slope)
    return v


@triton.jit
def activation_gradient(grad, output, ACTIVATION: tl.constexpr, negative_slope):
    # select, never multiply: an infinite upstream gradient stays out of the cut-off part
    if ACTIVATION == 1:
        grad = tl.where(output > 0.0, grad, 0.0)
    elif ACTIVATION == 2:
        grad = tl.where((output > 0.0) & (output < 6.0), grad, 0.0)
    elif ACTIVATION == 3:
        grad = tl.where(output > 0.0, grad, grad * negative_slope)
    return grad


@triton.jit
def widen(index, WIDE: tl.constexpr):
    if WIDE:
        index = index.to(tl.int64)
    return index


@triton.jit
def offsets(y, x, c, strides, WIDE: tl.constexpr):
    """Offsets inside one image of pixels (y, x) and channels c: [P, BC]."""
    pixels = widen(y, WIDE) * strides[2] + widen(x, WIDE) * strides[3]
    return pixels[:, None] + (widen(c, WIDE) * strides[1])[None, :]


@triton.jit
def tile_position(tile, H, W, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image, and the rows and columns of the pixels, of a tile of [N, H, W] counted image by image."""
    across = tl.cdiv(W, TILE_W)
    per_image = tl.cdiv(H, TILE_H) * across
    n = tile // per_image
    inside = tile % per_image
    p = tl.arange(0, TILE_H * TILE_W)
    y = inside // across * TILE_H + p // TILE_W
    x = inside % across * TILE_W + p % TILE_W
    return n.to(tl.int64), y, x


@triton.jit
def sum_parts_kernel(
    parts,  # [S, M] float32, contiguous
    out,  # [M], contiguous
    S,
    M,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = m < M
    total = tl.zeros((BLOCK,), tl.float32)
    row = parts + m
    # one fixed order: the sum does not depend on which program finished first
    for _ in range(S):
        total += tl.load(row, mask=mask, other=0.0)
        row += M
    tl.store(out + m, total.to(out.dtype.element_ty), mask=mask)


def sum_parts(parts: Tensor, out: Tensor) -> Tensor:
    """out = parts.sum(0), in the order of the rows."""
    count = out.numel()
    size = min(256, max(16, triton.next_power_of_2(count)))
    sum_parts_kernel[(triton.cdiv(count, size),)](
        parts, out, parts.shape[0], count, BLOCK=size, num_warps=min(4, max(1, size // 64)), num_stages=1
    )
    return out


def resize_scale(size_in: int, size_out: int, align_corners: bool) -> float:
    """Source pixels a target pixel along one axis, as torch.nn.functional.interpolate computes it from sizes."""
    if align_corners:
        return (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
    return size_in / size_out


def resize_readers(size_in: int, size_out: int, align_corners: bool) -> tuple[float, int]:
    """The inverse of `resize_scale`, and how many target pixels from `first_reader` on may read one source pixel."""
    scale = resize_scale(size_in, size_out, align_corners)
    if scale == 0.0:
        return 0.0, size_out
    # those within one source pixel on either side, a rounding of both ends, and the margin of `first_reader`
    return 1.0 / scale, min(size_out, math.ceil(2.0 / scale) + 4)


@triton.jit
def resize_source(i, size_in, scale, ALIGN_CORNERS: tl.constexpr):
    """Both source pixels of target pixel i along one axis, and the weight of the second."""
    if ALIGN_CORNERS:
        position = i.to(tl.float32) * scale
    else:
        position = tl.maximum((i.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(position.to(tl.int32), size_in - 1)
    high = tl.minimum(low + 1, size_in - 1)
    return low, high, position - low.to(tl.float32)


@triton.jit
def first_reader(source, inverse, ALIGN_CORNERS: tl.constexpr):
    """A target pixel not after the first one that reads pixel `source`: one too early, against rounding."""
    if ALIGN_CORNERS:
        position = (source - 1).to(tl.float32) * inverse
    else:
        position = (source.to(tl.float32) - 0.5) * inverse - 0.5
    return tl.maximum(tl.floor(position).to(tl.int32) - 1, 0)


@triton.jit
def reader_weight(i, source, size_in, scale, ALIGN_CORNERS: tl.constexpr):
    """The weight with which target pixel i reads pixel `source`; at the border it may read it twice."""
    low, high, weight = resize_source(i, size_in, scale, ALIGN_CORNERS)
    return tl.where(low == source, 1.0 - weight, 0.0) + tl.where(high == source, weight, 0.0)
