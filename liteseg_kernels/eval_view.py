"""Inference on a model that others may be using, in whatever mode they left it."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import nn

from .block import FusedModule
from .plan import PlannedModule

_INTERNAL = frozenset(vars(nn.Module())) | {"_watch", "_plans", "_graphs"}


def _trains(module: nn.Module) -> bool:
    """Whether any module in it is in training mode."""
    rest = [module]
    while rest:
        one = rest.pop()
        if one.training:
            return True
        rest += [child for child in one._modules.values() if child is not None]
    return False


def _leads_to_modules(value: Any) -> bool:
    """Whether modules could be called through an attribute: those themselves, not the view's."""
    if isinstance(value, (nn.Module, types.MethodType)):
        return isinstance(value, nn.Module) or _leads_to_modules(value.__self__)
    if isinstance(value, types.FunctionType):
        # what torch.compile returns is one
        return value.__closure__ is not None
    if isinstance(value, functools.partial):
        return any(map(_leads_to_modules, (value.func, *value.args, *value.keywords.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_leads_to_modules, value))
    return isinstance(value, dict) and any(map(_leads_to_modules, value.values()))


def _view(module: nn.Module, name: str, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in seen:
        return seen[module]
    own = vars(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{name}: expected eval mode for a scripted module (call eval() first), got training mode")
    for key, value in own.items():
        if key not in _INTERNAL and _leads_to_modules(value):
            raise ValueError(
                f"{name}: expected eval mode, for its attribute {key} leads to modules as they are, compiled ones for "
                "example (call eval() first), got training mode"
            )
    twin = seen[module] = module.__new__(type(module))
    state = twin.__dict__ = own.copy()
    state.update(training=False, _parameters=own["_parameters"].copy(), _buffers=own["_buffers"].copy())
    if isinstance(module, FusedModule):
        state["_watch"] = None
    elif isinstance(module, PlannedModule):
        # a plan is not worth making for one call
        state.update(_watch=None, _planned=False, _plans={}, _graphs=None)
    state["_modules"] = {
        key: None if child is None else _view(child, f"{name}.{key}", seen) for key, child in own["_modules"].items()
    }
    return twin


def eval_view(model: nn.Module) -> nn.Module:
    """The model in eval mode, for inference in a thread of several: itself where it is, else a view of it.

    A view has modules of its own in eval mode, with the model's parameters, buffers and hooks themselves (a hook is
    called with the view's module; what a forward assigns to itself is assigned there). Making one writes nothing to the
    model, at no time: others may run, and train it.

    Raises:
        ValueError: a module in training mode would run all the same: one that another module holds in a plain attribute
            or calls through a compiled or bound method, or a scripted one.
    """
    return _view(model, type(model).__name__, {}) if _trains(model) else model
