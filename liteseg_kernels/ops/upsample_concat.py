"""Op `upsample_concat`: a map resized bilinearly to a second map's size, in front of it along the channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import upsample_concat as reference
from . import _register

OP = "upsample_concat"


def check(x: Tensor, skip: Tensor, align_corners: bool) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "x", x)
    _checks.image(OP, "skip", skip)
    _checks.like(OP, "skip", skip, x, (x.shape[0], "C", "H", "W"))
    return x.shape[0], x.shape[1] + skip.shape[1], skip.shape[2], skip.shape[3]


def _fake(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    return empty_like_format(skip, check(x, skip, align_corners))


def _check_backward(grad: Tensor, size: Any, channels: int, align_corners: bool) -> None:
    _checks.image(OP, "grad", grad)
    if not 1 <= channels < grad.shape[1]:
        raise ValueError(f"{OP}: channels: expected 1..{grad.shape[1] - 1}, got {channels}")


def _fake_backward(grad: Tensor, size: Any, channels: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    n, total, height, width = grad.shape
    return (
        empty_like_format(grad, (n, channels, *size)),
        empty_like_format(grad, (n, total - channels, height, width)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.align_corners = inputs
    ctx.size, ctx.channels = tuple(x.shape[2:]), x.shape[1]
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.upsample_concat_backward(grad, ctx.size, ctx.channels, ctx.align_corners)
    return (*_register.given(gradients, ctx.needs_input_grad[:2]), None)


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
for _op, _function in ((OP, "forward"), (f"{OP}_backward", "backward")):
    _register.add_compiled(_op, "cpu")
    _register.add_triton(_op, OP, _function)
