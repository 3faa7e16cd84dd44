"""`explain`: how an op, a block or a network runs, and why not otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor, nn

from . import functional
from ._dispatch import Explanation
from .block import FusedModule
from .plan import PlannedModule

__all__ = ["ModuleExplanation", "explain"]


@dataclass(frozen=True)
class ModuleExplanation:
    """How the blocks of a module run when it is called now.

    Attributes:
        module: name of its class.
        fused: names of the blocks that run as one op. "" is the module itself.
        refused: blocks whose modules run one by one, and the networks that could have a plan but do not run from it, by
            name, with the reason.
        plan: names of the networks that run from a plan, without calling the modules inside.
    """

    module: str
    fused: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    plan: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.module}: {len(self.fused)} blocks as one op each"]
        lines += [f"  {name or 'the network'}: from one plan" for name in self.plan]
        lines += [f"  {name or 'the module'}: not fused: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)


def _look(module: nn.Module, name: str, fused: list[str], refused: dict[str, str]) -> None:
    if isinstance(module, FusedModule) and module.folds:
        reason = "expected eval mode, got training mode" if module.training else module.one_by_one()
        if reason is None:
            fused.append(name)
            return
        refused[name] = reason
        if module.training:
            return
    for child, part in module.named_children():
        _look(part, f"{name}.{child}" if name else child, fused, refused)


def _explain_module(module: nn.Module, x: Tensor | None) -> ModuleExplanation:
    fused: list[str] = []
    refused: dict[str, str] = {}
    plan: list[str] = []
    _look(module, "", fused, refused)
    for name, network in module.named_modules():
        if isinstance(network, PlannedModule):
            reason = network.plan_refusal() if x is None else network.refusal(x)
            if reason is None:
                plan.append(name)
            else:
                refused = {name: f"no plan, {reason}"} | refused
    return ModuleExplanation(type(module).__name__, tuple(fused), refused, tuple(plan))


@overload
def explain(op: str, *args: Any, **kwargs: Any) -> Explanation: ...
@overload
def explain(op: nn.Module, *args: Any) -> ModuleExplanation: ...


def explain(op: str | nn.Module, *args: Any, **kwargs: Any) -> Explanation | ModuleExplanation:
    """Which backend `functional.<op>(*args, **kwargs)` would run on, and why the others would not. Runs nothing.

    For a module in the place of `op`: which of its blocks run as one op each, and which run module by module for they
    hold something else than they were built of, and why. An input may follow: whether a whole network runs from a plan
    depends on it too.

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
