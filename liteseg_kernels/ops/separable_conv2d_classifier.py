"""Op `separable_conv2d_classifier`: a separable convolution with its activation, then a 1x1 convolution to the classes
(the end of LiteSeg's decoder; paper, section III-C). The map between is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

from .. import _checks, _dispatch
from .._layout import conform, empty_like_format
from .._schemas import public
from ..reference import separable_conv2d_classifier as reference
from . import _register

OP = "separable_conv2d_classifier"


def check(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    classifier_weight: Tensor,
    classifier_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "x", x)
    channels = x.shape[1]
    _checks.like(OP, "depthwise_weight", depthwise_weight, x, (channels, 1, "kh", "kw"))
    _checks.like(OP, "pointwise_weight", pointwise_weight, x, ("C_hidden", channels, 1, 1))
    hidden = pointwise_weight.shape[0]
    height, width = _checks.convolution_size(OP, x, depthwise_weight.shape[2:], stride, padding, dilation)
    _checks.optional_like(OP, "bias", bias, x, (hidden,))
    _checks.like(OP, "classifier_weight", classifier_weight, x, ("K", hidden, 1, 1))
    classes = classifier_weight.shape[0]
    _checks.optional_like(OP, "classifier_bias", classifier_bias, x, (classes,))
    return x.shape[0], classes, height, width


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, depthwise_weight, pointwise_weight, bias, classifier_weight, _, *geometry = inputs
    ctx.save_for_backward(x, depthwise_weight, pointwise_weight, bias, classifier_weight)
    ctx.geometry = geometry
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """By the parts' own backwards, on the map between computed again."""
    x, depthwise_weight, pointwise_weight, bias, classifier_weight = ctx.saved_tensors
    first, last = list(ctx.needs_input_grad[:4]), list(ctx.needs_input_grad[4:6])
    weights = (depthwise_weight, pointwise_weight)
    with _dispatch.restored(ctx.selection):
        hidden = torch.ops.liteseg.separable_conv2d(x, *weights, bias, None, *ctx.geometry)
        sums = [classifier_weight.shape[0]] if last[1] else None
        grad_hidden, *of_classifier = torch.ops.aten.convolution_backward(
            *(grad, hidden, classifier_weight, sums, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [any(first), *last])
        )
        of_first: Sequence[Tensor | None] = [None] * 4
        if any(first):
            gradients = torch.ops.liteseg.separable_conv2d_backward(
                grad_hidden, x, *weights, hidden, *ctx.geometry, [*first, False]
            )
            of_first = _register.given(gradients[:4], first)
    return (*of_first, *of_classifier, *(None for _ in ctx.geometry))


def _first(x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The arguments of `separable_conv2d`."""
    depthwise_weight, pointwise_weight, bias, _, _, *geometry = args
    return (x, depthwise_weight, pointwise_weight, bias, None, *geometry)


def _compose(backend: str) -> None:
    """Register `separable_conv2d` on `backend`, then PyTorch's convolution; `explain` says so."""

    def run(*args: Any) -> Tensor:
        hidden = _dispatch.run_on(backend, "separable_conv2d", *_first(*args))
        return conform(tf.conv2d(hidden, *args[4:6]), args[0])

    def refuses(*args: Any) -> str | None:
        return _dispatch.refusal("separable_conv2d", backend, _first(*args))

    _dispatch.implement(OP, backend, run, refuses, note="as separable_conv2d, then conv2d")


def _cuda_limits(*args: Any) -> str | None:
    """A tile's hidden channels and the whole classifier lie in shared memory: `carve` in the kernel's file, with one
    buffered chunk of the smallest tile."""
    x, depthwise_weight, pointwise_weight, classifier_weight = args[0], args[1], args[2], args[4]
    hidden, classes = pointwise_weight.shape[0], -(-classifier_weight.shape[0] // 16) * 16
    # chunks of 64 bytes in rows of 80
    chunk, columns = 64 // x.element_size(), 32 if hidden <= 32 else 96
    chunks, taps = -(-hidden // columns) * columns // chunk, depthwise_weight.shape[2] * depthwise_weight.shape[3]
    held = chunks * (64 + classes) * 80 + 4 * (chunks * chunk + classes)
    buffers = (taps + columns + 64) * 80 + (taps + 1) * chunk * (4 + x.element_size()) + 8 * taps
    if held + buffers > (there := _register.shared_memory(x)):
        classes = classifier_weight.shape[0]
        return f"{hidden} hidden channels and {classes} classes do not fit {there} B of shared memory"
    return _register.small_kernel(depthwise_weight)


_register.define(OP, check, _fake, reference.forward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.add_compiled(OP, "cuda", limits=_cuda_limits)
for _backend in ("cpu", "triton"):
    _compose(_backend)
