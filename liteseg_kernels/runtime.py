"""How a whole network runs: one interface, `logits`, `labels` and `explain`, before engines that are asked in turn.

An engine takes a call as a whole or says why not: a plan on the CPU (`plan`), CUDA graphs (`graphs`). What none takes
runs module by module. Networks without an engine, other people's among them, have the same interface.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import functional, intact
from .graphs import GraphReport
from .plan import Plan, PlannedModule

__all__ = ["Engine", "checked_logits", "NetworkExplanation", "explain", "labels", "logits"]

_logger = logging.getLogger("liteseg_kernels")

_LOW = "low_resolution_logits"
# what labels, uint8, can tell apart
_MOST_CLASSES = 256


@dataclass(frozen=True)
class _Call:
    """What is wanted of a network: logits before the last upsampling, or where there is a `size` labels of it; `flip`
    averages the logits with those of the mirrored input."""

    size: tuple[int, int] | None = None
    flip: bool = False


# module by module: what it computes of an input
Modules = Callable[[Tensor], Tensor]


class Engine(Protocol):
    """One way of running a whole network."""

    name: str

    def take(self, network: PlannedModule, call: Any, x: Tensor) -> Callable[[Modules], Tensor] | str:
        """What runs the call, given the network module by module; or why this engine does not take it."""


class PlanEngine:
    """The compiled plan of the network, on the CPU."""

    name = "plan"

    def take(self, network: PlannedModule, call: _Call, x: Tensor) -> Callable[[Modules], Tensor] | str:
        if call.flip:
            return "the logits of the mirrored input are wanted too"
        plan = network.plan_or_reason(x)
        if isinstance(plan, str):
            return plan
        size = call.size
        if size is None:
            return lambda modules: plan.logits(x)
        if plan.classes > _MOST_CLASSES:
            return f"expected at most {_MOST_CLASSES} classes for labels, got {plan.classes}"
        return lambda modules: plan.labels(x, size)


class GraphEngine:
    """CUDA graphs of the network's modules, where `fuse` was asked for them."""

    name = "cuda graph"

    def take(self, network: PlannedModule, call: _Call, x: Tensor) -> Callable[[Modules], Tensor] | str:
        reason = network.graph_refusal(x)
        return (lambda modules: network.replay(call, modules, x)) if reason is None else reason


ENGINES: tuple[Engine, ...] = (PlanEngine(), GraphEngine())
MODULES = "modules"


@dataclass(frozen=True)
class NetworkExplanation:
    """How a call of a whole network runs.

    Attributes:
        engine: "plan", "cuda graph", or "modules": one by one.
        refused: why each engine before it, or every one, does not take the call.
        plan: what it runs from, where that is a plan.
        graph: the state of its CUDA graphs, where they take it or were asked for.
    """

    engine: str
    refused: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    graph: GraphReport | None = None

    def __str__(self) -> str:
        return "\n".join([self.engine, *(f"  not by {name}: {reason}" for name, reason in self.refused.items())])


def _more(model: nn.Module) -> str | None:
    """Why what a call of the model gives may be more than labels of its low-resolution logits."""
    if intact.hooked(model):
        return "the network has hooks"
    if intact.overrides(type(model), "forward", _LOW):
        return f"{type(model).__name__} has a forward of its own"
    return None


def _taken(model: nn.Module, call: _Call, x: Tensor) -> tuple[str, Callable[[Modules], Tensor] | None, dict[str, str]]:
    """Name of the engine that takes the call, what runs it there, and why the engines before it do not."""
    refused: dict[str, str] = {}
    if not isinstance(model, PlannedModule):
        return MODULES, None, refused
    reason = None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        reason = "it is traced or compiled"
    elif call.size is not None:
        # a method put on the model itself, a compiled one for example, is what its owner wants to run
        reason = f"{_LOW} was put on the network" if intact.replaced(model, _LOW) else _more(model)
    for engine in ENGINES:
        taken = reason or engine.take(model, call, x)
        if not isinstance(taken, str):
            return engine.name, taken, refused
        refused[engine.name] = taken
    return MODULES, None, refused


def _run(model: nn.Module, call: _Call, x: Tensor, modules: Modules) -> Tensor:
    # compilers and exporters see through this, and need not see a message
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return modules(x)
    _, run, refused = _taken(model, call, x)
    if run is not None:
        return run(modules)
    if isinstance(model, PlannedModule):
        model.miss_graph(refused[GraphEngine.name])
    return modules(x)


def logits(network: PlannedModule, x: Tensor) -> Tensor:
    """Low-resolution logits [N, K, h, w] of a network's input [N, C, H, W], by the engine that takes them."""
    return _run(network, _Call(), x, network.forward_modules)


def checked_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits that `labels` starts from, module by module: low-resolution ones, or `forward`'s where it is more."""
    low = getattr(model, _LOW, None)
    if low is None or (_more(model) is not None and not intact.replaced(model, _LOW)):
        low = model
    found = low(x)
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[0] != x.shape[0]:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"predict: model: expected logits [{x.shape[0]}, K, H, W], got {got}")
    if found.shape[1] > _MOST_CLASSES:
        raise ValueError(f"predict: model: expected at most 256 classes (labels are uint8), got {found.shape[1]}")
    return found


def labels(model: nn.Module, x: Tensor, size: tuple[int, int], *, flip: bool = False) -> Tensor:
    """Labels of normalised input, at any size. Leaves eval mode and inference mode to the caller.

    Args:
        model: with ``low_resolution_logits(x)`` (all networks of this library), else one whose ``forward`` gives
            logits; so does one that is more than those: that has hooks, or whose class has a ``forward`` of its own.
        x: float [N, C, h, w], on the model's device.
        size: (H, W) of the labels.
        flip: average the logits with those of the mirrored input (twice the work).

    Returns:
        uint8 [N, H, W] on x's device, the arg max of the logits interpolated to ``size``.

    Raises:
        TypeError, ValueError: the model gives no logits [N, K, h, w], or more than 256 classes.
    """

    def modules(x: Tensor) -> Tensor:
        found = checked_logits(model, x)
        if flip:
            found = (found + checked_logits(model, x.flip(-1)).flip(-1)) / 2
        return functional.upsample_argmax(found, size, align_corners=getattr(model, "align_corners", True))

    return _run(model, _Call((size[0], size[1]), flip), x, modules)


def explain(
    model: nn.Module, x: Tensor, size: tuple[int, int] | None = None, *, flip: bool = False
) -> NetworkExplanation:
    """How `logits(model, x)` runs when it is called now, or with a `size` `labels(model, x, size)`. Runs nothing.

    Example:
        >>> import torch, liteseg, liteseg_kernels as lk
        >>> fused = liteseg.fuse(liteseg.create_model("liteseg_mobilenetv2"))
        >>> lk.runtime.explain(fused.train(), torch.zeros(1, 3, 64, 96)).refused["plan"]
        'the network is in training mode'
    """
    engine, _, refused = _taken(model, _Call(size, flip), x)
    plan = graph = None
    if isinstance(model, PlannedModule):
        made = model.plan_or_reason(x) if engine == PlanEngine.name else None
        plan = made if isinstance(made, Plan) else None
        graph = model.graph_report(x)
    return NetworkExplanation(engine, refused, plan, graph)
