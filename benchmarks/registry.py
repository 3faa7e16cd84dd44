"""What the microbenchmarks run: per op its shapes, its providers, and the bytes and MACs that nobody can avoid.

A provider is one way of getting the same result: ours on each backend, PyTorch eager in both memory formats, PyTorch
compiled. Bytes count every input and output once; dividing them by a time gives a rate to hold against a copy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

import liteseg_kernels as lk
from liteseg_kernels import functional as lf

from . import shapes


@dataclass(frozen=True)
class Work:
    """One op at one shape. `ours` and `torch` take `arguments` (maps first) and give the same result."""

    op: str
    arguments: tuple[Any, ...]
    ours: Callable[..., Tensor]
    torch: Callable[..., Tensor]
    bytes: int
    macs: int


def _size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def separable(shape: shapes.SeparableShape, dtype: torch.dtype, device: str) -> Work:
    make = {"dtype": dtype, "device": device}
    x = torch.randn(shape.n, shape.c, shape.h, shape.w, **make)
    depthwise, pointwise = (
        torch.randn(shape.c, 1, shape.k, shape.k, **make),
        torch.randn(shape.out, shape.c, 1, 1, **make),
    )
    bias = torch.randn(shape.out, **make)
    padding = shape.dilation * (shape.k - 1) // 2

    def ours(x: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
        return lf.separable_conv2d(
            x, depthwise, pointwise, bias, padding=padding, dilation=shape.dilation, activation="relu"
        )

    def plain(x: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
        between = tf.conv2d(x, depthwise, None, 1, padding, shape.dilation, shape.c)
        return tf.relu(tf.conv2d(between, pointwise, bias))

    pixels = shape.n * shape.h * shape.w
    moved = _size(x, depthwise, pointwise, bias) + pixels * shape.out * x.element_size()
    macs = pixels * shape.c * (shape.k**2 + shape.out)
    return Work("separable_conv2d", (x, depthwise, pointwise, bias), ours, plain, moved, macs)


def inverted(shape: shapes.InvertedShape, dtype: torch.dtype, device: str) -> Work:
    make = {"dtype": dtype, "device": device}
    x = torch.randn(shape.n, shape.c, shape.h, shape.w, **make)
    residual = shape.stride == 1 and shape.c == shape.out
    weights = tuple(
        torch.randn(size, **make)
        for size in (
            *((shape.hidden, shape.c, 1, 1), (shape.hidden,)),
            *((shape.hidden, 1, 3, 3), (shape.hidden,)),
            *((shape.out, shape.hidden, 1, 1), (shape.out,)),
        )
    )

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return lf.inverted_residual(x, *weights, stride=shape.stride, residual=residual)

    def plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
        hidden = tf.relu6(tf.conv2d(x, w1, b1))
        hidden = tf.relu6(tf.conv2d(hidden, w2, b2, shape.stride, 1, 1, shape.hidden))
        out = tf.conv2d(hidden, w3, b3)
        return x + out if residual else out

    before = shape.n * shape.h * shape.w
    after = shape.n * -(-shape.h // shape.stride) * -(-shape.w // shape.stride)
    moved = _size(x, *weights) + after * shape.out * x.element_size()
    macs = before * shape.c * shape.hidden + after * shape.hidden * (9 + shape.out)
    return Work("inverted_residual", (x, *weights), ours, plain, moved, macs)


def argmax(shape: shapes.UpsampleShape, dtype: torch.dtype, device: str) -> Work:
    logits = torch.randn(shape.n, shape.k, shape.h, shape.w, dtype=dtype, device=device)
    size = (shape.height, shape.width)

    def ours(logits: Tensor) -> Tensor:
        return lf.upsample_argmax(logits, size)

    def plain(logits: Tensor) -> Tensor:
        return tf.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1).to(torch.uint8)

    pixels = shape.n * shape.height * shape.width
    # bilinear interpolation: 4 multiply-adds a class and pixel
    return Work("upsample_argmax", (logits,), ours, plain, _size(logits) + pixels, 4 * shape.k * pixels)


OPS: dict[str, tuple[Callable[..., Work], Mapping[str, Any]]] = {
    "separable_conv2d": (separable, shapes.SEPARABLE),
    "inverted_residual": (inverted, shapes.INVERTED),
    "upsample_argmax": (argmax, shapes.UPSAMPLE),
}


def _laid_out(work: Work, memory_format: torch.memory_format) -> tuple[Any, ...]:
    return tuple(a.contiguous(memory_format=memory_format) if a.dim() == 4 else a for a in work.arguments)


def providers(work: Work, device: str) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, call) of every provider that can run `work` here."""
    last = _laid_out(work, torch.channels_last)
    first = _laid_out(work, torch.contiguous_format)
    for backend in ("cpu", "triton", "cuda"):

        def ours(backend: str = backend) -> Tensor:
            with lk.use_backend(backend, strict=True):
                return work.ours(*last)

        try:
            ours()
        except lk.BackendError:
            continue
        yield f"liteseg {backend}", ours
    yield "eager", lambda: work.torch(*first)
    yield "eager channels_last", lambda: work.torch(*last)
    compiled = torch.compile(work.torch, mode="max-autotune" if device == "cuda" else None)
    yield "compiled", lambda: compiled(*last)
