"""Base of the networks that run from a plan on the CPU, and from CUDA graphs where asked for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _dispatch, _loader, intact
from ..block import FusedModule
from ..graphs import GraphCache, GraphReport
from .compiled import Plan
from .contract import constant
from .packing import Unplannable
from .program import Program
from .report import PlanReport

_logger = logging.getLogger("liteseg_kernels")

Self = TypeVar("Self", bound="PlannedModule")

# that there are plans of
_DTYPES = (torch.float32, torch.bfloat16)


def _deprecated(old: str, new: str) -> None:
    warnings.warn(f"PlannedModule.{old} is deprecated: use liteseg_kernels.{new}", DeprecationWarning, stacklevel=3)


def _autocasts() -> bool:
    """Whether torch.autocast turns convolutions on the CPU to bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class PlannedModule(nn.Module):
    """Base of networks that `fuse` runs from one plan. Subclasses define `lower` and `forward_modules`, and where their
    forward does more than that call `runtime.logits` in it.

    The plan is made from the folded weights when it is first needed, is no part of the `state_dict`, and is made again
    after anything that may change them: loading a `state_dict`, `.to()`, copying and unpickling. Going back to training
    drops it for good. It is used only while nothing inside is altered (`intact`). CUDA graphs (`graphs.GraphCache`),
    where `fuse` was asked for them, follow the same rules. Which of them takes a call is `runtime`'s to say.
    """

    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self._planned = False
        # by dtype: a plan, or why there is none
        self._plans: dict[torch.dtype, Plan | str] = {}
        self._graphs: GraphCache | None = None
        self._graph_refusals: set[str] = set()
        self._watch: intact.Watch | None = None
        self.register_load_state_dict_post_hook(_forget)

    def lower(self, program: Program, x: int) -> int:
        """Describe the network from its input `x` to its last value."""
        raise NotImplementedError

    def forward_modules(self, x: Tensor) -> Tensor:
        """What `lower` describes, module by module."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        from .. import runtime

        return runtime.logits(self, x)

    def plan_(self) -> None:
        """Run from a plan from now on, where one covers the network and the input."""
        self._planned = True
        self._plans = {}

    def _dtype(self) -> torch.dtype | str:
        """What the weights compute in, or why no plan can."""
        converted = [part for part in self.modules() if not getattr(part, "keeps_dtypes", False)]
        tensors = [t for part in converted for t in (*part.parameters(False), *part.buffers(False))]
        tensors = [t for t in tensors if t.is_floating_point()]
        dtypes = {t.dtype for t in tensors} or {torch.float32}
        if len(dtypes) != 1 or dtypes.isdisjoint(_DTYPES) or any(t.device.type != "cpu" for t in tensors):
            return "the weights are not all float32 or all bfloat16 on the CPU"
        return torch.bfloat16 if _autocasts() else dtypes.pop()

    def program(self) -> Program:
        """The network as its modules tell it. Raises Unplannable where one of them has nothing to say."""
        program = Program(self.in_channels)
        with torch.no_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            self.lower(program, 0)
        return program

    def _made(self, dtype: torch.dtype) -> Plan | str:
        """The plan, or why there is none."""
        made = self._plans.get(dtype)
        if made is None:
            missing = _loader.missing("cpu")
            if missing is not None:
                return missing
            if dtype == torch.bfloat16 and not constant("bf16_plans"):
                isa = torch.ops.liteseg_cpu.isa()
                return f"bfloat16 plans need AVX512_BF16 or AMX, and the instruction set in use is {isa}"
            try:
                with torch.no_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
                    made = Plan.compile(self.program(), dtype)
            except Unplannable as reason:
                made = str(reason)
            # two threads may make it at once: both get the same, and one is kept
            self._plans[dtype] = made
        return made

    def altered(self) -> str | None:
        """Why the modules inside must be called: what a plan or a graph passes by is not what it was made from."""
        watch = self._watch
        if watch is not None and watch.holds(self):
            return None
        return self._look()

    def _look(self) -> str | None:
        """`altered` anew; a plan made from what has changed since is forgotten."""
        watch = self._watch
        reason = intact.environment() or intact.outdated_description(type(self)) or _altered_part(self, "")
        if watch is not None and watch.same(self) and reason is not None:
            # hooks alone leave no trace in the weights
            return reason
        if watch is not None:
            self._plans = {}
            self._forget_graphs()
        self._watch = None if reason is not None else intact.Watch(self, FusedModule)
        return reason

    def plan_refusal(self) -> str | None:
        """Why the modules run one by one for any input."""
        if not self._planned or self.training:
            return "the network is in training mode" if self.training else "the network was not fused"
        return self.altered()

    def refusal(self, x: Tensor) -> str | None:
        """Why the modules run one by one for x, and not a plan."""
        made = self.plan_or_reason(x)
        return made if isinstance(made, str) else None

    def plan_or_reason(self, x: Tensor) -> Plan | str:
        """The plan that takes x, or why the modules run one by one."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "it is traced or compiled"
        reason = self.plan_refusal()
        if reason is not None:
            return reason
        if type(x) is not Tensor or not x.is_cpu or x.dtype not in _DTYPES:
            return (
                f"x is a {type(x).__name__} of {x.dtype} on {x.device.type}, and plans run float32 or bfloat16 on cpu"
            )
        autocasts = torch.is_autocast_enabled("cpu")
        if autocasts and not _autocasts():
            return "autocast is on, but not to bfloat16"
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return "gradients are recorded (use torch.inference_mode())"
        backend = _dispatch.selection().name
        if backend not in ("auto", "cpu"):
            return f"the backend {backend!r} was asked for"
        # weight changes invalidate plans, so dtypes are checked only when one is built
        dtype = torch.bfloat16 if autocasts else x.dtype
        made = self._plans.get(dtype)
        if made is not None:
            return made
        found = self._dtype()
        if isinstance(found, str):
            return found
        if not autocasts and found != x.dtype:
            return f"x is of {x.dtype}, and the weights of {found}"
        return self._made(dtype)

    def plan_for(self, x: Tensor) -> Plan | None:
        """Deprecated: `runtime.explain(network, x).plan`."""
        _deprecated("plan_for(x)", "runtime.explain(network, x).plan, or runtime.logits(network, x)")
        made = self.plan_or_reason(x)
        return made if isinstance(made, Plan) else None

    def plan(self, size: tuple[int, int] = (360, 640), *, profile: bool = False) -> PlanReport:
        """The plan of a fused network for images of `size` (height, width): layers, strategies, multiply-adds, bytes.

        The plan is that of the weights' dtype, or bfloat16's inside `torch.autocast("cpu", torch.bfloat16)`.
        `profile=True` runs it and adds the time of each layer. Raises ValueError for a network without a plan.
        """
        dtype: torch.dtype | str = "it was not fused"
        if self._planned:
            dtype = self.altered() or self._dtype()
        made = dtype if isinstance(dtype, str) else self._made(dtype)
        if isinstance(made, str):
            raise ValueError(f"plan: expected a network that runs from a plan, got one that does not: {made}")
        return made.report(size, profile=profile)

    def drop_plan(self) -> None:
        """Run module by module from now on."""
        self._planned = False
        self._plans = {}
        self._forget_graphs()
        self._graphs = None

    def graph_(self, cache: GraphCache) -> None:
        """Replay CUDA graphs from `cache` from now on, where the input allows it."""
        self._graphs = cache
        self._graph_refusals.clear()

    def graph_refusal(self, x: Tensor) -> str | None:
        """Why no CUDA graph is replayed for x."""
        if self._graphs is None:
            return "the network was not fused with cuda_graph=True"
        if self.training:
            return "the network is in training mode"
        reason = self._graphs.refusal(x) or self.altered()
        if reason is None and torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.parameters())):
            reason = "gradients are recorded (use torch.inference_mode())"
        return reason

    def graph_report(self, x: Tensor) -> GraphReport:
        """Whether a call on an input like x, made as the caller is now, replays a CUDA graph, and if not, why."""
        reason = self.graph_refusal(x)
        graphs = self._graphs
        counts = (0, 0) if graphs is None else (len(graphs), graphs.capacity)
        return GraphReport(reason is None, reason or "", *counts)

    def explain_graph(self, x: Tensor) -> GraphReport:
        """Deprecated: `runtime.explain(network, x).graph`."""
        _deprecated("explain_graph(x)", "runtime.explain(network, x).graph")
        return self.graph_report(x)

    def replay(self, call: Hashable, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """run(x) from a CUDA graph, which `graph_refusal` must not refuse; `call` names `run`."""
        assert self._graphs is not None
        return self._graphs.run(call, run, x, (t for of in (self.parameters, self.buffers) for t in of()))

    def miss_graph(self, reason: str) -> None:
        """Say, once for each reason, that a graph was asked for and is not what happens."""
        if self._graphs is not None and reason not in self._graph_refusals:
            self._graph_refusals.add(reason)
            level = logging.DEBUG if "part of a graph" in reason else logging.WARNING
            _logger.log(level, "cuda_graph: no replay: %s", reason)

    def replayed(self, call: Hashable, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Deprecated: `runtime.logits` and `runtime.labels` replay what may be replayed."""
        _deprecated("replayed(...)", "runtime.logits(network, x) or runtime.labels(network, x, size)")
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return run(x)
        reason = self.graph_refusal(x)
        if reason is None:
            return self.replay(call, run, x)
        self.miss_graph(reason)
        return run(x)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def train(self: Self, mode: bool = True) -> Self:
        if mode:
            self.drop_plan()
        super().train(mode)
        return self

    def _apply(self: Self, *args: Any, **kwargs: Any) -> Self:
        self._plans, self._watch = {}, None
        self._forget_graphs()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # packed for this machine's instruction set
        return self.__dict__ | {"_plans": {}, "_watch": None}


def _forget(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, PlannedModule)
    module._plans, module._watch = {}, None
    module._forget_graphs()


# what runs its children one after another, or nothing
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _altered_part(module: nn.Module, around: str) -> str | None:
    """Which module inside is not what `lower` describes, and why."""
    for child, part in module.named_children():
        name = f"{around}{child}"
        kind = type(part)
        reason = intact.altered(part, name, kind)
        if reason is None and intact.outdated_description(kind) is not None:
            reason = f"{name}: {intact.outdated_description(kind)}"
        if reason is None and isinstance(part, FusedModule) and part.folds:
            if not part.is_intact():
                return intact.inside(name, part.one_by_one())
            if not part.is_current():
                return f"{name}: expected the parameters that were folded, got others (call fuse again)"
            continue
        if reason is None and not hasattr(part, "lower") and kind not in _CONTAINERS:
            if any(isinstance(inner, FusedModule) for inner in part.modules()):
                reason = f"{name}: expected a module with lower(), got {kind.__name__}"
        reason = reason or _altered_part(part, f"{name}.")
        if reason is not None:
            return reason
    return None
