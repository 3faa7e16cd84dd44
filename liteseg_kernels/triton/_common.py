"""What the Triton kernels share: device functions, the fixed-order reduction, and the launchers' small decisions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import tf32_allowed
from ._tiles import Tile as Tile

# a wider index is used from here on; offsets are counted in elements
_INT32_MAX = 2**31 - 1

# Triton compiles a kernel again for every mix of integers that are 1, divisible by 16 or neither, and always for those
# inside of tuples. What changes from one size of a map to another must not be among them: numbers of images, channels
# and pixels (capitals, or h and w of the smaller map), of parts and tiles, and the strides of images and rows ...
_SIZES = re.compile(
    r"[A-Z][A-Z0-9]?|WIDTH|[hw]|[a-z]_[nh]|d_[xy]|(padding|dilation|readers)_[hw]|readers|size|tiles|pixels|splits|"
    r"per_part|each_in|each_out"
)
# ... while of a stride of channels, columns or a convolution it matters whether it is 1, and not what divides it
_STEPS = re.compile(r"[a-z]_[cwx]|stride_[hw]")


def kernel(function: Callable[..., None]) -> Any:
    """`triton.jit` for a kernel that takes sizes and strides as numbers: another size compiles nothing again.

    What divides channels and strides has to be known for wide loads and stores; it comes in by a constant, `ALIGN`.
    """
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if "constexpr" not in str(parameter.annotation)
    ]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if _SIZES.fullmatch(name)],
        do_not_specialize_on_alignment=[name for name in names if _STEPS.fullmatch(name)],
    )


def guard(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device current for the launches inside; nothing to do for CPU tensors (interpreter)."""
    return torch.cuda.device_of(x) if x.is_cuda else contextlib.nullcontext()


def dot_precision(x: Tensor) -> str:
    """`input_precision` of products: exact, unless torch may round float32 products to tf32.

    Three products of tf32 halves (tf32x3) would be faster and are not exact enough: 1.5e-6 off in a pyramid of 96
    channels, with a limit of 1e-6, before the tensor cores' own sums, which are cut off too.
    """
    return "tf32" if x.dtype == torch.float32 and tf32_allowed() else "ieee"


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


def alignment(*tensors: Tensor | None, rows: bool = False) -> int:
    """The power of two, 16 at most, that divides channels and pixel strides of all channels_last tensors given.

    With `rows` the one for maps [N, C, H, W] or [N, H, W] whose rows are contiguous, negative: it divides their width
    and their other strides.
    """
    known = [t for t in tensors if t is not None]
    if rows:
        return -math.gcd(16, *(v for t in known for v in (t.shape[-1], *t.stride()[:-1])))
    return math.gcd(16, *(v for t in known for v in (t.shape[1], t.stride(0), t.stride(2), t.stride(3))))


def divisor(*counts: int) -> int:
    """The power of two, 16 at most, that divides all of them."""
    return math.gcd(16, *counts)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Those of a GPU; of an H100 where there is none (interpreter)."""
    return _multiprocessors(device.index) if device.type == "cuda" else 132


@triton.jit
def aligned(n, c, h, w, ALIGN: tl.constexpr):
    """The strides (n, c, h, w), all but that of the contiguous axis seen by the compiler as multiples of ALIGN."""
    if ALIGN > 0:
        n = n // ALIGN * ALIGN
        h = h // ALIGN * ALIGN
        w = w // ALIGN * ALIGN
    else:
        n = n // -ALIGN * -ALIGN
        c = c // -ALIGN * -ALIGN
        h = h // -ALIGN * -ALIGN
    return n, c, h, w


@triton.jit
def extents(C, W, ALIGN: tl.constexpr):
    """The number of channels and of columns, that along the contiguous axis seen as a multiple of ALIGN."""
    if ALIGN > 0:
        C = C // ALIGN * ALIGN
    else:
        W = W // -ALIGN * -ALIGN
    return C, W


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
def _nearest_tf32(v):
    """float32 rounded to the nearest tf32, ties away from zero, as the hardware's conversion has it."""
    bits = (v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    # the sum could turn a NaN into zero
    return tl.where(v != v, v, bits.to(tl.float32, bitcast=True))


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, or with acc None the product alone."""
    if PRECISION == "tf32":
        # tensor cores cut float32 off, which makes every product smaller: errors that do not average out
        a = _nearest_tf32(a)
        b = _nearest_tf32(b)
    return tl.dot(a, b, acc, input_precision=PRECISION)


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


# parts and values that a step of a sum over parts takes: in one tree, so that their loads are under way together
_ROWS, _COLUMNS = 64, 32
# into how many parts a sum over channels may be cut, and the least blocks of channels of a part: fewer take no longer
# than the launch that adds up the parts
MOST_SPLITS, _LEAST_STEPS = 8, 6


def splits_of(programs: int, steps: int, x: Tensor) -> int:
    """Into how many parts to cut a sum of `steps` blocks of channels where `programs` alone leave x's device idle."""
    most = min(MOST_SPLITS, steps // _LEAST_STEPS, multiprocessors(x.device) // programs)
    return 1 << max(0, most.bit_length() - 1)


@triton.jit
def summed(parts, size, index, mask, splits, MOST: tl.constexpr):
    """The sum of the first `splits` of at most MOST parts, `size` elements apart, in their order."""
    count = tl.where(mask, splits, 0)
    total = tl.load(parts + index, mask=mask, other=0.0)
    # not a loop up to splits: a load would wait for the one before
    for part in tl.static_range(1, MOST):
        total += tl.load(parts + part * size + index, mask=count > part, other=0.0)
    return total


@kernel
def sum_parts_kernel(
    parts,  # [S, M] float32, contiguous
    out,  # [M], contiguous
    S,
    M,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    M = M // ALIGN * ALIGN
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    # one fixed order: the sum does not depend on which program finished first
    for first in range(0, S, ROWS):
        mask = (first + row < S)[:, None] & (m < M)[None, :]
        total += tl.load(parts + (first + row).to(tl.int64)[:, None] * M + m[None, :], mask=mask, other=0.0)
    tl.store(out + m, tl.sum(total, 0).to(out.dtype.element_ty), mask=m < M)


def sum_parts(parts: Tensor, out: Tensor) -> Tensor:
    """out = parts.sum(0), in one fixed order."""
    count = out.numel()
    sum_parts_kernel[(triton.cdiv(count, _COLUMNS),)](
        parts, out, parts.shape[0], count, ROWS=_ROWS, BLOCK=_COLUMNS, ALIGN=divisor(count), num_warps=4, num_stages=1
    )
    return out


def strides_of(t: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if t is None else t.stride()


def tap_strides(depthwise: Tensor | None) -> tuple[int, ...]:
    """Those of channels, rows and columns of a weight [C, 1, KH, KW]."""
    return (0, 0, 0) if depthwise is None else (depthwise.stride(0), *depthwise.stride()[2:])


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
