"""Op `depthwise_conv2d`: one k x k filter a channel, for training, where normalisation follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import depthwise_conv2d as reference
from . import _register

OP = "depthwise_conv2d"


def check(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "x", x)
    _checks.like(OP, "weight", weight, x, (x.shape[1], 1, "kh", "kw"))
    height, width = _checks.convolution_size(OP, x, weight.shape[2:], stride, padding, dilation)
    return (x.shape[0], x.shape[1], height, width)


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _check_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> None:
    _checks.like(OP, "grad", grad, x, check(x, weight, *rest[:3]))


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    mask = rest[3]
    return (
        empty_like_format(x, x.shape) if mask[0] else x.new_empty(0),
        x.new_empty(weight.shape if mask[1] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *geometry = inputs
    ctx.save_for_backward(x, weight)
    ctx.geometry = geometry
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:2])
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.depthwise_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*_register.given(gradients, mask), None, None, None)


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
_register.add_compiled(OP, "cpu")
_register.add_compiled(f"{OP}_backward", "cpu", image=1)
