"""Op `upsample_concat_separable_conv2d`: a resized map and a second one, concatenated, into a separable convolution
(the first layer of LiteSeg's decoder; paper, section III-C). Neither the resized map nor the concatenation is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import upsample_concat_separable_conv2d as reference
from . import _register

OP = "upsample_concat_separable_conv2d"
_PARTS = ("upsample_concat", "separable_conv2d")


def check(
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "x", x)
    _checks.image(OP, "skip", skip)
    _checks.like(OP, "skip", skip, x, (x.shape[0], "C", "H", "W"))
    channels = x.shape[1] + skip.shape[1]
    _checks.like(OP, "depthwise_weight", depthwise_weight, x, (channels, 1, "kh", "kw"))
    _checks.like(OP, "pointwise_weight", pointwise_weight, x, ("C_out", channels, 1, 1))
    kernel = depthwise_weight.shape[2:]
    height, width = _checks.convolution_size(OP, skip, kernel, stride, padding, dilation, "skip")
    _checks.optional_like(OP, "bias", bias, x, (pointwise_weight.shape[0],))
    return x.shape[0], pointwise_weight.shape[0], height, width


def _fake(x: Tensor, skip: Tensor, *args: Any) -> Tensor:
    return empty_like_format(skip, check(x, skip, *args))


def _check_backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    *rest: Any,
) -> None:
    shape = check(x, skip, depthwise_weight, pointwise_weight, None, *rest[:6])
    _checks.like(OP, "grad", grad, x, shape)
    _checks.like(OP, "output", output, x, shape)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    mask = rest[6]
    return (
        empty_like_format(skip, x.shape) if mask[0] else x.new_empty(0),
        empty_like_format(skip, skip.shape) if mask[1] else x.new_empty(0),
        x.new_empty(depthwise_weight.shape if mask[2] else 0),
        x.new_empty(pointwise_weight.shape if mask[3] else 0),
        x.new_empty(pointwise_weight.shape[0] if mask[4] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, skip, depthwise_weight, pointwise_weight, _, *geometry = inputs
    ctx.save_for_backward(x, skip, depthwise_weight, pointwise_weight, output)
    ctx.geometry = geometry
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:5])
    with _dispatch.restored(ctx.selection):
        gradients = getattr(torch.ops.liteseg, f"{OP}_backward")(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*_register.given(gradients, mask), *(None for _ in ctx.geometry))


def _compiled(op: str) -> Any:
    return getattr(torch.ops.liteseg_cpu, op)


def _composed(x: Tensor, skip: Tensor, *args: Any) -> Tensor:
    """By the compiled kernels of both ops. A network that is fused whole has a layer of its own for it (`plan`)."""
    depthwise_weight, pointwise_weight, bias, *geometry, align_corners = args
    whole = _compiled("upsample_concat")(x, skip, align_corners)
    return _compiled("separable_conv2d")(whole, depthwise_weight, pointwise_weight, bias, None, *geometry)


def _composed_backward(grad: Tensor, x: Tensor, skip: Tensor, *args: Any) -> tuple[Tensor, ...]:
    depthwise_weight, pointwise_weight, output, *geometry, align_corners, mask = args
    whole = _compiled("upsample_concat")(x, skip, align_corners)
    weights = (depthwise_weight, pointwise_weight, output)
    maps = mask[0] or mask[1]
    grad_whole, *grad_weights, _ = _compiled("separable_conv2d_backward")(
        grad, whole, *weights, *geometry, [maps, *mask[2:], False]
    )
    grads = [x.new_empty(0), x.new_empty(0)]
    if maps:
        found = _compiled("upsample_concat_backward")(grad_whole, x.shape[2:], x.shape[1], align_corners)
        grads = [g if wanted else g.new_empty(0) for g, wanted in zip(found, mask[:2], strict=True)]
    return (*grads, *grad_weights)


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
_register.add_composed(OP, "cpu", _composed, _PARTS)
_register.add_composed(f"{OP}_backward", "cpu", _composed_backward, [f"{op}_backward" for op in _PARTS], image=1)
for _op, _function, _image in ((OP, "forward", 0), (f"{OP}_backward", "backward", 1)):
    _register.add_triton(_op, OP, _function, image=_image)
_register.add_compiled(OP, "cuda", limits=lambda *args: _register.small_kernel(args[2]))
