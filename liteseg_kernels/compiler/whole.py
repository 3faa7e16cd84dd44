"""Activations and norms as one op each where torch has no meta kernel for them.

For a map of open size AOTAutograd runs the formula itself on symbols to know the result's shape (hardswish: seven ops,
each with its conditions on strides), which was most of a compilation's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.library import impl, register_fake
from torch.nn import functional as tf

from .._schemas import public

ACTIVATIONS = {tf.relu6: "relu6", tf.hardswish: "hardswish"}

public.define("activate(Tensor x, str name) -> Tensor")
public.define("norm(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps) -> Tensor")


def _elementwise(x: Tensor) -> Tensor:
    """What any such op makes of a fake map: of the strides of one pixel torch makes its own choice."""
    return x + 0


@impl(public, "activate", "CompositeExplicitAutograd")
def _activate(x: Tensor, name: str) -> Tensor:
    made: Tensor = getattr(tf, name)(x)
    return made


@register_fake("liteseg::activate", lib=public)
def _activate_fake(x: Tensor, name: str) -> Tensor:
    return _elementwise(x)


@impl(public, "norm", "CompositeExplicitAutograd")
def _norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return tf.batch_norm(x, mean, var, weight, bias, eps=eps)


@register_fake("liteseg::norm", lib=public)
def _norm_fake(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return _elementwise(x)


def _given(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    """Arguments by name, for a function whose parameters are `defaults`."""
    return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs


def _activation(node: fx.Node) -> tuple[Any, ...] | None:
    given = _given(node, input=None, inplace=False)
    x = given["input"]
    # what is overwritten has to be new and read by nobody else
    new = isinstance(x, fx.Node) and x.target in (*NEW, torch.ops.liteseg.norm.default) and len(x.users) == 1
    if len(given) > 2 or not isinstance(x, fx.Node) or not (given["inplace"] is False or new):
        return None
    return torch.ops.liteseg.activate.default, (x, ACTIVATIONS[node.target])  # type: ignore[index]


def _batch_norm(node: fx.Node) -> tuple[Any, ...] | None:
    names = ("input", "running_mean", "running_var", "weight", "bias")
    given = _given(node, **dict.fromkeys(names), training=False, momentum=0.1, eps=1e-5)
    x, mean, var, weight, bias = (given[name] for name in names)
    if given["training"] is not False or not all(isinstance(part, fx.Node) for part in (x, mean, var)):
        return None
    return torch.ops.liteseg.norm.default, (x, mean, var, weight, bias, given["eps"])


# functions whose results are nobody else's memory
NEW = (tf.batch_norm, tf.conv2d, torch.conv2d)
_RULES: dict[Any, Callable[[fx.Node], tuple[Any, ...] | None]] = {tf.batch_norm: _batch_norm}
_RULES |= {activation: _activation for activation in ACTIVATIONS}


def stand_in(node: fx.Node) -> tuple[Any, ...] | None:
    """Op and arguments that may take the place of a node of Dynamo's graph."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    return None if rule is None else rule(node)
