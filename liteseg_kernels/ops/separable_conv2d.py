"""Op `separable_conv2d`: depthwise k x k -> pointwise -> bias -> residual -> activation (paper, section III-B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import separable_conv2d as reference
from . import _register

OP = "separable_conv2d"


def check(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
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
    _checks.like(OP, "pointwise_weight", pointwise_weight, x, ("C_out", channels, 1, 1))
    height, width = _checks.convolution_size(OP, x, depthwise_weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], pointwise_weight.shape[0], height, width)
    _checks.optional_like(OP, "bias", bias, x, (shape[1],))
    _checks.optional_like(OP, "residual", residual, x, shape)
    return shape


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _check_backward(
    grad: Tensor, x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, output: Tensor, *rest: Any
) -> None:
    geometry = rest[:5]
    shape = check(x, depthwise_weight, pointwise_weight, None, None, *geometry)
    _checks.like(OP, "grad", grad, x, shape)
    _checks.like(OP, "output", output, x, shape)


def _fake_backward(
    grad: Tensor, x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, output: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    mask = rest[5]
    return (
        empty_like_format(x, x.shape) if mask[0] else x.new_empty(0),
        x.new_empty(depthwise_weight.shape if mask[1] else 0),
        x.new_empty(pointwise_weight.shape if mask[2] else 0),
        x.new_empty(pointwise_weight.shape[0] if mask[3] else 0),
        empty_like_format(output, output.shape) if mask[4] else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, depthwise_weight, pointwise_weight, _, _, *geometry = inputs
    ctx.save_for_backward(x, depthwise_weight, pointwise_weight, output)
    ctx.geometry = geometry
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:5])
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.separable_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*_register.given(gradients, mask), None, None, None, None, None)


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
for _op, _function, _image in ((OP, "forward", 0), (f"{OP}_backward", "backward", 1)):
    _register.add_compiled(_op, "cpu", image=_image)
    _register.add_triton(_op, OP, _function, image=_image)
_register.add_compiled(OP, "cuda", limits=lambda *args: _register.small_kernel(args[1]))
_register.add_compiled(f"{OP}_backward", "cuda", image=1)
