"""Op `daspp`: the atrous pyramid with folded weights, one output map from one encoder map (paper, section III-A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import daspp as reference
from . import _register

OP = "daspp"


def check(
    x: Tensor,
    direct_weight: Tensor | None,
    point_weight: Tensor | None,
    point_bias: Tensor | None,
    atrous_depthwise: Sequence[Tensor],
    atrous_pointwise: Sequence[Tensor],
    atrous_bias: Sequence[Tensor],
    deep_depthwise: Sequence[Tensor],
    deep_pointwise: Sequence[Tensor],
    deep_bias: Sequence[Tensor],
    pool_weight: Tensor,
    pool_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    rates: Sequence[int],
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "x", x)
    channels = x.shape[1]
    _checks.like(OP, "pool_weight", pool_weight, x, ("filters", channels, 1, 1))
    filters = pool_weight.shape[0]
    _checks.like(OP, "pool_bias", pool_bias, x, (filters,))
    if (point_weight is None) != (point_bias is None):
        raise ValueError(f"{OP}: point_bias: expected a tensor just where point_weight is one")
    _checks.optional_like(OP, "point_weight", point_weight, x, (filters, channels, 1, 1))
    _checks.optional_like(OP, "point_bias", point_bias, x, (filters,))
    if not rates or min(rates) < 1:
        raise ValueError(f"{OP}: rates: expected one or more rates of at least 1, got {list(rates)}")
    for name, tensors, shapes in (
        (
            "atrous",
            (atrous_depthwise, atrous_pointwise, atrous_bias),
            ((channels, 1, 3, 3), (filters, channels, 1, 1), (filters,)),
        ),
        (
            "deep",
            (deep_depthwise, deep_pointwise, deep_bias),
            ((filters, 1, 3, 3), (filters, filters, 1, 1), (filters,)),
        ),
    ):
        lengths = [len(t) for t in tensors]
        if lengths != [len(rates)] * 3 and (name == "atrous" or lengths != [0] * 3):
            raise ValueError(f"{OP}: {name}: expected {len(rates)} weights of each kind, one a rate, got {lengths}")
        for part, weights, shape in zip(("depthwise", "pointwise", "bias"), tensors, shapes, strict=True):
            for index, weight in enumerate(weights):
                _checks.like(OP, f"{name}_{part}[{index}]", weight, x, shape)
    maps = len(rates) + 1 + (point_weight is not None)
    _checks.like(OP, "project_weight", project_weight, x, ("C_out", maps * filters, 1, 1))
    out_channels = project_weight.shape[0]
    _checks.like(OP, "project_bias", project_bias, x, (out_channels,))
    _checks.optional_like(OP, "direct_weight", direct_weight, x, (out_channels, channels, 1, 1))
    return x.shape[0], out_channels, x.shape[2], x.shape[3]


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _check_backward(grad: Tensor, *args: Any) -> None:
    x, project_weight, output, rates = args[0], args[12], args[13], args[14]
    forward = [*args[:13], project_weight.new_empty(project_weight.shape[0]), rates]
    shape = check(*forward)
    _checks.like(OP, "grad", grad, x, shape)
    _checks.like(OP, "output", output, x, shape)


def _fake_backward(grad: Tensor, *args: Any) -> list[Tensor]:
    x, project_weight = args[0], args[12]
    weights: list[Tensor] = []
    for argument in args[1:13]:
        weights += argument if isinstance(argument, (list, tuple)) else [] if argument is None else [argument]
    return [
        empty_like_format(x, x.shape),
        *(x.new_empty(w.shape) for w in weights),
        x.new_empty(project_weight.shape[0]),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout = [len(a) if isinstance(a, (list, tuple)) else a is not None for a in inputs[:14]]
    flat: list[Tensor] = []
    for argument in inputs[:13]:
        flat += argument if isinstance(argument, (list, tuple)) else [] if argument is None else [argument]
    ctx.save_for_backward(*flat, output)
    ctx.rates = inputs[14]
    ctx.selection = _dispatch.selection()


def _nested(ctx: Any, flat: Sequence[Tensor], arguments: int) -> list[Any]:
    """The first `arguments` arguments of the op, from the flat list of the tensors given."""
    remaining = iter(flat)
    nested: list[Any] = []
    for entry in ctx.layout[:arguments]:
        if isinstance(entry, bool):
            nested.append(next(remaining) if entry else None)
        else:
            nested.append([next(remaining) for _ in range(entry)])
    return nested


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *flat, output = ctx.saved_tensors
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.daspp_backward(grad, *_nested(ctx, flat, 13), output, ctx.rates)
    return (*_nested(ctx, gradients, 14), None)


def _cuda_limits(*args: Any) -> str | None:
    rates = args[14]
    return f"{len(rates)} rates are more than the 8 of one launch" if len(rates) > 8 else None


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
_register.add_compiled(OP, "cpu")
_register.add_triton(OP, OP)
_register.add_triton(f"{OP}_backward", OP, "backward", image=1)
_register.add_compiled(OP, "cuda", limits=_cuda_limits)
