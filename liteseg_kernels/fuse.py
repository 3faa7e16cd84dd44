"""Copies of a model for other uses: folded for inference, or plain torch.nn for export and inspection."""

from __future__ import annotations

import copy
import logging
from typing import TypeVar

from torch import Tensor, nn

from . import _loader
from .block import FusedModule
from .graphs import GraphCache
from .plan import PlannedModule

Model = TypeVar("Model", bound=nn.Module)


_logger = logging.getLogger("liteseg_kernels")


def _copy(model: Model) -> Model:
    """As deepcopy, which refuses the computed tensors that pruning and the old weight_norm leave for weights."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _fold(module: nn.Module, name: str, left: list[str]) -> None:
    """Fold what folds, from the outside in; adds to `left` what does not, and why."""
    if isinstance(module, FusedModule) and module.folds:
        reason = module.alteration()
        if reason is None:
            module.fuse_()
            return
        left.append(f"{name}.{reason}" if name else reason)
    for child, part in module.named_children():
        _fold(part, f"{name}.{child}" if name else child, left)


def fuse(model: Model, *, cuda_graph: bool = False) -> Model:
    """An eval copy of `model` with every module of this library folded: same call, same `state_dict`, faster.

    Modules that are not this library's are copied as they are, and so are blocks of this library that hold something
    else than they were built of (other types, hooks, parametrisations ...): a warning is logged that lists those, and
    `explain(fused)` does. What is altered after `fuse` runs module by module from then on. The copy keeps what it
    folded: load a `state_dict` into it and it folds again, but after writing to its parameters in place call `fuse` on
    the model again. Gradients do not reach what was folded. Whole networks (`PlannedModule`) run from one plan on the
    CPU while nothing in them is altered. Where the compiled CPU kernels are missing, a warning says so, once.

    Args:
        cuda_graph: on a CUDA device, record a graph of the network for each size, dtype and memory format of its input
            (the last 8 are kept) and replay it: the first call at a size is slow, the others launch once. Calls that
            record gradients, autocast and CPU inputs run kernel by kernel: `runtime.explain(fused, x)` says why, and a
            warning is logged. Weights may change as above: the graph is captured again.

    Raises:
        TypeError: `cuda_graph` for a model without a network of this library in it.
    """
    _loader.warn_without_kernels()
    fused = _copy(model).eval()
    left: list[str] = []
    _fold(fused, "", left)
    if left:
        _logger.warning("fuse: left as they are, for they do not hold what they were built of: %s", "; ".join(left))
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
    plain = _copy(model)
    for module in plain.modules():
        if isinstance(module, FusedModule):
            module.unfuse_()
            module.reference = True
        elif isinstance(module, PlannedModule):
            module.drop_plan()
    return plain
