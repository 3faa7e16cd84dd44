"""What the ahead-of-time check compiles: the launchers at layer shapes of the networks, reaching every table row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# kernel -> the module of liteseg_kernels.triton that holds its launch table
TABLES = {"separable_conv2d": "_separable"}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A launcher call at a layer's shape; `call(dtype)` makes it on meta tensors."""

    kernel: str
    name: str
    call: Callable[[torch.dtype], Any]


def _map(dtype: torch.dtype, *shape: int, channels_last: bool = True) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def _separable(c: int, o: int, height: int, width: int, k: int = 3, dilation: int = 1, **options: Any) -> Case:
    nchw = options.pop("nchw", False)
    activation = options.pop("activation", 0)
    training = options.pop("training", True)

    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.separable_conv2d")
        x = _map(dtype, 1, c, height, width, channels_last=not nchw)
        depthwise = torch.empty(c, 1, k, k, dtype=dtype, device="meta")
        pointwise = torch.empty(o, c, 1, 1, dtype=dtype, device="meta")
        bias = None if training else torch.empty(o, dtype=dtype, device="meta")
        padding = [dilation * (k - 1) // 2] * 2
        geometry = ([1, 1], padding, [dilation] * 2, activation, 0.1)
        out = ops.forward(x, depthwise, pointwise, bias, None, *geometry)
        if training:
            ops.backward(torch.empty_like(out), x, depthwise, pointwise, out, *geometry, [True] * 5)

    layout = "nchw" if nchw else "nhwc"
    passes = "training" if training else "inference"
    return Case("separable_conv2d", f"{c}->{o} k{k} d{dilation} act{activation} {layout} {passes}", call)


def cases() -> Iterator[Case]:
    """Every case; together they reach every row of every launch table."""
    yield _separable(120, 96, 256, 512, activation=1, training=False)
    yield _separable(120, 96, 256, 512)
    yield _separable(96, 96, 256, 512, nchw=True, activation=1, training=False)
    yield _separable(1280, 96, 32, 64, dilation=6)
    yield _separable(1760, 96, 32, 64, k=1, activation=1, training=False)
    yield _separable(384, 48, 128, 256, k=1)
    yield _separable(128, 32, 256, 512, k=1)
    yield _separable(32, 16, 512, 1024, activation=2, training=False)
    yield _separable(16, 16, 512, 1024)
