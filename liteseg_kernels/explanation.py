"""`explain`: how an op, a block or a network runs, and why not otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor, nn

from . import functional, runtime
from ._dispatch import Explanation
from .block import FusedModule
from .int8 import Int8Module
from .plan import PlannedModule, PlanReport

__all__ = ["ModuleExplanation", "explain"]


@dataclass(frozen=True)
class ModuleExplanation:
    """How the blocks of a module run when it is called now.

    Attributes:
        module: name of its class.
        fused: names of the blocks that run as one op. "" is the module itself.
        refused: blocks whose modules run one by one, parts with convolutions and no block of this library, and
            the networks that could have a plan but do not run from it, by name, with the reason.
        plan: names of the networks that run from a plan, without calling the modules inside.
        layers: of these the layers of the plan at the size of the input, where there is one.
        graph: names of the networks that replay a CUDA graph.
        int8: names of the blocks in int8: by kernels of bytes in a plan, elsewhere by their reference, slowly.
    """

    module: str
    fused: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    plan: tuple[str, ...] = ()
    layers: dict[str, PlanReport] = field(default_factory=dict)
    graph: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.module}: {len(self.fused)} blocks as one op each"]
        if self.int8:
            how = "by kernels of bytes" if self.plan else "by their slow reference, for no plan runs"
            lines[0] += f", {len(self.int8)} in int8 {how}"
        for name in self.plan:
            lines.append(f"  {name or 'the network'}: from one plan")
            if name in self.layers:
                lines += [f"    {line}" for line in str(self.layers[name]).splitlines()]
        lines += [f"  {name or 'the network'}: from a CUDA graph" for name in self.graph]
        lines += [f"  {name or 'the module'}: not fused: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def _without_blocks(module: nn.Module) -> bool:
    """Whether there are convolutions inside, and not one block of this library that could be fused."""
    inside = tuple(module.modules())
    # a network has its own line, a single layer has nothing to say
    if len(inside) == 1 or isinstance(module, PlannedModule) or any(isinstance(part, FusedModule) for part in inside):
        return False
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in inside)


def _look(module: nn.Module, name: str, fused: list[str], refused: dict[str, str]) -> None:
    if isinstance(module, FusedModule) and module.folds:
        reason = "expected eval mode, got training mode" if module.training else module.one_by_one()
        if reason is None:
            fused.append(name)
            return
        refused[name] = reason
        if module.training:
            return
    if _without_blocks(module):
        refused[name] = "no block of this library is in it, torch runs its modules one by one"
        return
    for child, part in module.named_children():
        _look(part, f"{name}.{child}" if name else child, fused, refused)


def _explain_module(module: nn.Module, x: Tensor | None) -> ModuleExplanation:
    fused: list[str] = []
    refused: dict[str, str] = {}
    plan: list[str] = []
    graph: list[str] = []
    layers: dict[str, PlanReport] = {}
    _look(module, "", fused, refused)
    for name, network in module.named_modules():
        if not isinstance(network, PlannedModule):
            continue
        run = runtime.NetworkExplanation(runtime.MODULES) if x is None else runtime.explain(network, x)
        reason = network.plan_refusal() if x is None else run.refused.get("plan")
        if reason is None:
            plan.append(name)
            if run.plan is not None and x is not None and x.dim() == 4:
                layers[name] = run.plan.report((x.shape[2], x.shape[3]))
        elif run.engine == runtime.GraphEngine.name:
            graph.append(name)
        else:
            refused = {name: f"no plan, {reason}"} | refused
    int8 = tuple(name for name, part in module.named_modules() if isinstance(part, Int8Module))
    return ModuleExplanation(type(module).__name__, tuple(fused), refused, tuple(plan), layers, tuple(graph), int8)


@overload
def explain(op: str, *args: Any, **kwargs: Any) -> Explanation: ...
@overload
def explain(op: nn.Module, *args: Any) -> ModuleExplanation: ...


def explain(op: str | nn.Module, *args: Any, **kwargs: Any) -> Explanation | ModuleExplanation:
    """Which backend `functional.<op>(*args, **kwargs)` would run on, and why the others would not. Runs nothing.

    For a module in the place of `op`: which of its blocks run as one op each, and which run module by module for they
    hold something else than they were built of, and why. An input may follow: whether a whole network runs from a plan
    or a CUDA graph depends on it too, and the plan's layers have its sizes. `runtime.explain` answers for one network.

    Raises:
        ValueError, TypeError: wrong arguments, as the op itself would; an unknown op.

    Example:
        >>> import torch, liteseg_kernels as lk
        >>> block = lk.SeparableConv2d(8, 16).eval()
        >>> lk.explain(block).fused
        ('',)
        >>> handle = block.pointwise.register_forward_hook(print)
        >>> lk.explain(block).refused
        {'': 'pointwise: expected no hooks, got one of its forward hooks'}
    """
    if not isinstance(op, nn.Module):
        return functional.explain(op, *args, **kwargs)
    if kwargs or len(args) > 1 or not all(isinstance(x, Tensor) for x in args):
        raise TypeError("explain: expected a module and at most one tensor, its input")
    return _explain_module(op, args[0] if args else None)
