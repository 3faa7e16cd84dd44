"""What the ahead-of-time check compiles: the launchers at layer shapes of the networks, reaching every table row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A launcher call at a layer's shape; `call(dtype)` makes it, on the device that torch has as default."""

    kernel: str
    name: str
    call: Callable[[torch.dtype], Any]


def _map(dtype: torch.dtype, *shape: int, channels_last: bool = True) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=memory_format)


def _vector(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _separable(c: int, o: int, height: int, width: int, k: int = 3, dilation: int = 1, **options: Any) -> Case:
    nchw = options.pop("nchw", False)
    activation = options.pop("activation", 0)
    training = options.pop("training", True)

    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.separable_conv2d")
        x = _map(dtype, 1, c, height, width, channels_last=not nchw)
        depthwise, pointwise = _vector(dtype, c, 1, k, k), _vector(dtype, o, c, 1, 1)
        bias = None if training else _vector(dtype, o)
        padding = [dilation * (k - 1) // 2] * 2
        geometry = ([1, 1], padding, [dilation] * 2, activation, 0.1)
        out = ops.forward(x, depthwise, pointwise, bias, None, *geometry)
        if training:
            ops.backward(torch.empty_like(out), x, depthwise, pointwise, out, *geometry, [True] * 5)

    layout = "nchw" if nchw else "nhwc"
    passes = "training" if training else "inference"
    return Case("separable_conv2d", f"{c}->{o} k{k} d{dilation} act{activation} {layout} {passes}", call)


def _inverted_residual(c: int, ratio: int, o: int, height: int, width: int, stride: int = 1) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.inverted_residual")
        m = c * ratio
        expand = (_vector(dtype, m, c, 1, 1), _vector(dtype, m)) if ratio > 1 else (None, None)
        ops.forward(
            *(_map(dtype, 1, c, height, width), *expand, _vector(dtype, m, 1, 3, 3), _vector(dtype, m)),
            *(_vector(dtype, o, m, 1, 1), _vector(dtype, o), [stride] * 2, [1, 1], 2, 0.0, stride == 1 and c == o),
        )

    return Case("inverted_residual", f"{c}->{c * ratio}->{o} stride {stride}", call)


def _upsample_argmax(channels_last: bool, align_corners: bool) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.upsample_argmax")
        ops.forward(_map(dtype, 1, 19, 256, 512, channels_last=channels_last), (1024, 2048), align_corners)

    return Case("upsample_argmax", f"19 {'nhwc' if channels_last else 'nchw'} align_corners={align_corners}", call)


def _upsample_concat(c1: int, c2: int, channels_last: bool) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.upsample_concat")
        x = _map(dtype, 1, c1, 32, 64, channels_last=channels_last)
        out = ops.forward(x, _map(dtype, 1, c2, 256, 512, channels_last=channels_last), True)
        ops.backward(torch.empty_like(out), (32, 64), c1, True)

    return Case("upsample_concat", f"{c1}+{c2} {'nhwc' if channels_last else 'nchw'}", call)


def _upsample_cross_entropy(options: tuple[Any, ...], channels_last: bool) -> Case:
    weighted, smoothing = options

    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.upsample_cross_entropy")
        logits = _map(dtype, 8, 19, 128, 256, channels_last=channels_last)
        target = _vector(torch.int64, 8, 512, 1024)
        weight = _vector(dtype, 19) if weighted else None
        arguments = (logits, target, weight, 255, smoothing, True)
        ops.forward(*arguments)
        ops.loss_map(*arguments)
        ops.backward(_vector(torch.float32, 8), *arguments)

    layout = "nhwc" if channels_last else "nchw"
    return Case("upsample_cross_entropy", f"19 {layout} weighted={weighted} smoothing={smoothing}", call)


def _inverted_residual_backward(c: int, ratio: int, o: int, height: int, width: int, stride: int = 1) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.inverted_residual")
        m = c * ratio
        expand = (_vector(dtype, m, c, 1, 1), _vector(dtype, m)) if ratio > 1 else (None, None)
        ops.backward(
            *(_map(dtype, 1, o, height // stride, width // stride), _map(dtype, 1, c, height, width), *expand),
            *(_vector(dtype, m, 1, 3, 3), _vector(dtype, m), _vector(dtype, o, m, 1, 1), [stride] * 2, [1, 1], 2, 0.0),
            *(stride == 1 and c == o, [True] * 7),
        )

    return Case("layers", f"inverted residual {c}->{c * ratio}->{o} stride {stride} training", call)


def _shuffle_unit(c: int, b: int, d: int, height: int, width: int, first_groups: int = 8, stride: int = 1) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.shuffle_unit")
        x, concat = _map(dtype, 1, c, height, width), stride > 1
        weights = [
            *(_vector(dtype, b, c // first_groups, 1, 1), _vector(dtype, b), _vector(dtype, b, 1, 3, 3)),
            *(_vector(dtype, b), _vector(dtype, d, b // 8, 1, 1)),
        ]
        geometry = (8, [stride] * 2, [1, 1], concat)
        out = ops.forward(x, *weights, _vector(dtype, d), *geometry)
        ops.backward(torch.empty_like(out), x, *weights, out, *geometry, [True] * 7)

    return Case("shuffle_unit", f"{c}->{b}->{d} stride {stride} training", call)


def _daspp(c: int, filters: int, height: int, width: int, deeper: bool) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.daspp")
        x, rates, branches = _map(dtype, 1, c, height, width), [3, 6, 9], 4 if deeper else 5

        def separable(channels: int, count: int) -> list[list[Tensor]]:
            shapes = ((channels, 1, 3, 3), (filters, channels, 1, 1), (filters,))
            return [[_vector(dtype, *shape) for _ in range(count)] for shape in shapes]

        point = (None, None) if deeper else (_vector(dtype, filters, c, 1, 1), _vector(dtype, filters))
        weights = [
            *(_vector(dtype, filters, c, 1, 1), *point, *separable(c, 3), *separable(filters, 3 if deeper else 0)),
            *(_vector(dtype, filters, c, 1, 1), _vector(dtype, filters)),
            _vector(dtype, filters, branches * filters, 1, 1),
        ]
        out = ops.forward(x, *weights, _vector(dtype, filters), rates)
        ops.backward(torch.empty_like(out), x, *weights, out, rates)

    return Case("daspp", f"{c}->{filters} {'deeper' if deeper else 'plain'} training", call)


def _upsample_concat_separable(c1: int, c2: int, o: int, channels_last: bool = True, growth: int = 8) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.upsample_concat_separable_conv2d")
        skip = _map(dtype, 1, c2, 256, 512, channels_last=channels_last)
        weights = _vector(dtype, c1 + c2, 1, 3, 3), _vector(dtype, o, c1 + c2, 1, 1), _vector(dtype, o)
        x = _map(dtype, 1, c1, 256 // growth, 512 // growth, channels_last=channels_last)
        ops.forward(x, skip, *weights, [1, 1], [1, 1], [1, 1], 1, 0.0, True)

    layout = "nhwc" if channels_last else "nchw"
    return Case("upsample_concat_separable_conv2d", f"{c1}+{c2}->{o} {layout} x{growth}", call)


def _batch_norm_activation(c: int, height: int, width: int, activation: int, residual: bool, nchw: bool) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.batch_norm_activation")
        x = _map(dtype, 1, c, height, width, channels_last=not nchw)
        skip = torch.empty_like(x) if residual else None
        normaliser = [_vector(torch.float32, c) for _ in range(4)]
        ops.statistics(x)
        ops.forward(x, *normaliser, skip, activation, 0.1, "")
        total, dot = ops.backward_reduce(x, x, *normaliser, skip, activation, 0.1)
        ops.backward(x, x, *normaliser, skip, total, dot, activation, 0.1, [True, residual and activation > 0])

    layout = "nchw" if nchw else "nhwc"
    return Case("batch_norm_activation", f"{c} act{activation} residual={residual} {layout} training", call)


def _preprocess(channels_last: bool) -> Case:
    def call(dtype: torch.dtype) -> None:
        ops = importlib.import_module("liteseg_kernels.triton.preprocess")
        image = _vector(torch.uint8, 1, 1024, 2048, 3)
        ops.forward(image, (512, 1024), [0.5] * 3, [0.2] * 3, dtype, channels_last)

    return Case("preprocess", f"3 {'nhwc' if channels_last else 'nchw'}", call)


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
    yield _inverted_residual(32, 1, 16, 512, 1024)
    yield _inverted_residual(16, 6, 24, 512, 1024, stride=2)
    yield _inverted_residual(24, 6, 24, 256, 512)
    yield _inverted_residual(32, 6, 64, 128, 256, stride=2)
    yield _inverted_residual(8, 6, 8, 512, 1024)
    yield _inverted_residual(160, 6, 320, 32, 64)
    yield _upsample_argmax(True, True)
    yield _upsample_argmax(False, False)
    yield _upsample_concat(96, 24, True)
    yield _upsample_concat(96, 24, False)
    yield _upsample_cross_entropy((False, 0.0), True)
    yield _upsample_cross_entropy((True, 0.1), False)
    yield _inverted_residual_backward(16, 6, 24, 512, 1024, stride=2)
    yield _inverted_residual_backward(32, 1, 16, 512, 1024)
    yield _inverted_residual_backward(96, 6, 96, 64, 128)
    yield _shuffle_unit(24, 96, 360, 256, 512, first_groups=1, stride=2)
    yield _shuffle_unit(384, 96, 384, 128, 256)
    yield _shuffle_unit(1536, 384, 1536, 32, 64)
    yield _shuffle_unit(128, 32, 128, 128, 256)
    yield _daspp(1280, 96, 32, 64, True)
    yield _daspp(1024, 96, 64, 128, False)
    yield _daspp(320, 32, 32, 64, True)
    yield _batch_norm_activation(96, 256, 512, 2, False, False)
    yield _batch_norm_activation(384, 64, 128, 1, True, False)
    yield _batch_norm_activation(24, 256, 512, 0, True, False)
    yield _batch_norm_activation(96, 256, 512, 2, False, True)
    yield _preprocess(True)
    yield _preprocess(False)
    yield _upsample_concat_separable(96, 24, 96)
    yield _upsample_concat_separable(96, 24, 96, channels_last=False)
    yield _upsample_concat_separable(96, 48, 64, growth=4)
    yield _upsample_concat_separable(32, 24, 16)
