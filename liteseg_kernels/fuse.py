"""Copies of a model for other uses: folded for inference, or plain torch.nn for export and inspection."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from .nn import FusedModule
from .plan import PlannedModule

Model = TypeVar("Model", bound=nn.Module)


def _outermost(model: nn.Module) -> list[FusedModule]:
    """The modules to fold: those that fold and are not part of one that does."""
    if isinstance(model, FusedModule) and model.folds:
        return [model]
    return [found for child in model.children() for found in _outermost(child)]


def fuse(model: Model) -> Model:
    """An eval copy of `model` with every module of this library folded: same call, same `state_dict`, faster.

    Modules that are not this library's are copied as they are. The copy keeps what it folded: load a `state_dict` into
    it and it folds again, but after writing to its parameters in place call `fuse` on the model again. Whole networks
    (`PlannedModule`) run from one plan on the CPU, without calling their modules; hooks on those do not fire then.
    """
    fused = copy.deepcopy(model).eval()
    for module in _outermost(fused):
        module.fuse_()
    for network in fused.modules():
        if isinstance(network, PlannedModule):
            network.plan_()
    return fused


def to_reference(model: Model) -> Model:
    """A copy of `model` made of plain torch.nn operations only, for export, hooks and comparison; same `state_dict`."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, FusedModule):
            if module.fused:
                module.train().eval()
            module.reference = True
        elif isinstance(module, PlannedModule):
            module.drop_plan()
    return plain
