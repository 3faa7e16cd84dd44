"""Copies of a model for other uses: folded for inference, or plain torch.nn for export and inspection."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from .graphs import GraphCache
from .nn import FusedModule
from .plan import PlannedModule

Model = TypeVar("Model", bound=nn.Module)


def _outermost(model: nn.Module) -> list[FusedModule]:
    """The modules to fold: those that fold and are not part of one that does."""
    if isinstance(model, FusedModule) and model.folds:
        return [model]
    return [found for child in model.children() for found in _outermost(child)]


def fuse(model: Model, *, cuda_graph: bool = False) -> Model:
    """An eval copy of `model` with every module of this library folded: same call, same `state_dict`, faster.

    Modules that are not this library's are copied as they are. The copy keeps what it folded: load a `state_dict` into
    it and it folds again, but after writing to its parameters in place call `fuse` on the model again. Whole networks
    (`PlannedModule`) run from one plan on the CPU, without calling their modules; hooks on those do not fire then.

    Args:
        cuda_graph: on a CUDA device, record a graph of the network for each size, dtype and memory format of its input
            (the last 8 are kept) and replay it: the first call at a size is slow, the others launch once. Calls that
            record gradients, autocast and CPU inputs run kernel by kernel: `fused.explain_graph(x)` says why, and a
            warning is logged. Weights may change as above: the graph is captured again.

    Raises:
        TypeError: `cuda_graph` for a model without a network of this library in it.
    """
    fused = copy.deepcopy(model).eval()
    for module in _outermost(fused):
        module.fuse_()
    networks = [network for network in fused.modules() if isinstance(network, PlannedModule)]
    if cuda_graph and not networks:
        raise TypeError(f"fuse: cuda_graph: expected a network of this library (PlannedModule), got {type(model)}")
    for network in networks:
        network.plan_()
        if cuda_graph:
            network.graph_(GraphCache())
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
