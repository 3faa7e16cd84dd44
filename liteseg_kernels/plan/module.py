"""Base of the networks that run from a plan on the CPU, and from CUDA graphs where asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _dispatch, _loader
from ..graphs import GraphCache, GraphReport
from .compiled import Plan
from .packing import WRITERS, Unplannable
from .program import Program
from .report import PlanReport

_logger = logging.getLogger("liteseg_kernels")

Self = TypeVar("Self", bound="PlannedModule")


def _autocasts() -> bool:
    """Whether torch.autocast turns convolutions on the CPU to bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class PlannedModule(nn.Module):
    """Base of networks that `fuse` runs from one plan. Subclasses define `lower` and ask `plan_for` in their forward.

    The plan is made from the folded weights when it is first needed, is no part of the `state_dict`, and is made again
    after anything that may change them: loading a `state_dict`, `.to()`, copying and unpickling. Going back to training
    drops it for good. CUDA graphs (`graphs.GraphCache`), where `fuse` was asked for them, follow the same rules;
    subclasses hand what they want replayed to `replayed`.
    """

    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self._planned = False
        # by dtype: a plan, or why there is none
        self._plans: dict[torch.dtype, Plan | str] = {}
        self._graphs: GraphCache | None = None
        self._graph_refusals: set[str] = set()
        self.register_load_state_dict_post_hook(_forget)

    def lower(self, program: Program, x: int) -> int:
        """Describe the network from its input `x` to its last value."""
        raise NotImplementedError

    def plan_(self) -> None:
        """Run from a plan from now on, where one covers the network and the input."""
        self._planned = True
        self._plans = {}

    def _dtype(self) -> torch.dtype | str:
        """What the weights compute in, or why no plan can."""
        tensors = [t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()]
        dtypes = {t.dtype for t in tensors} or {torch.float32}
        if len(dtypes) != 1 or dtypes.isdisjoint(WRITERS) or any(t.device.type != "cpu" for t in tensors):
            return "the weights are not all float32 or all bfloat16 on the CPU"
        return torch.bfloat16 if _autocasts() else dtypes.pop()

    def _made(self, dtype: torch.dtype) -> Plan | str:
        """The plan, or why there is none."""
        made = self._plans.get(dtype)
        if made is None:
            missing = _loader.missing("cpu")
            if missing is not None:
                return missing
            isa = torch.ops.liteseg_cpu.isa()
            if dtype == torch.bfloat16 and isa != "avx512bf16":
                return f"bfloat16 runs from a plan with AVX512_BF16 only, and the instruction set in use is {isa}"
            program = Program(self.in_channels)
            try:
                with torch.no_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
                    self.lower(program, 0)
                    made = Plan.compile(program, dtype)
            except Unplannable as reason:
                made = str(reason)
            # two threads may make it at once: both get the same, and one is kept
            self._plans[dtype] = made
        return made

    def plan_for(self, x: Tensor) -> Plan | None:
        """The plan that takes x, or None: then the modules run one by one."""
        if not self._planned or self.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        if type(x) is not Tensor or x.device.type != "cpu" or x.dtype not in WRITERS:
            return None
        autocasts = torch.is_autocast_enabled("cpu")
        if autocasts and not _autocasts():
            return None
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return None
        if _dispatch.selection().name not in ("auto", "cpu"):
            return None
        # what a plan was made from stays, so only a new one looks at the weights
        dtype: torch.dtype | str = torch.bfloat16 if autocasts else x.dtype
        if dtype not in self._plans:
            dtype = self._dtype()
            if isinstance(dtype, str) or not (autocasts or dtype == x.dtype):
                return None
        made = self._made(dtype)
        return made if isinstance(made, Plan) else None

    def plan(self, size: tuple[int, int] = (360, 640), *, profile: bool = False) -> PlanReport:
        """The plan of a fused network for images of `size` (height, width): layers, strategies, multiply-adds, bytes.

        The plan is that of the weights' dtype, or bfloat16's inside `torch.autocast("cpu", torch.bfloat16)`.
        `profile=True` runs it and adds the time of each layer. Raises ValueError for a network without a plan.
        """
        dtype = self._dtype() if self._planned else "it was not fused"
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

    def _graph_refusal(self, x: Tensor) -> str | None:
        if self._graphs is None:
            return "the network was not fused with cuda_graph=True"
        if self.training:
            return "the network is in training mode"
        reason = self._graphs.refusal(x)
        if reason is None and torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.parameters())):
            reason = "gradients are recorded (use torch.inference_mode())"
        return reason

    def explain_graph(self, x: Tensor) -> GraphReport:
        """Whether a call on an input like x, made as the caller is now, replays a CUDA graph, and if not, why."""
        reason = self._graph_refusal(x)
        graphs = self._graphs
        counts = (0, 0) if graphs is None else (len(graphs), graphs.capacity)
        return GraphReport(reason is None, reason or "", *counts)

    def replayed(self, call: Hashable, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """run(x), from a CUDA graph where `fuse(cuda_graph=True)` asked for one and x allows it; `call` names `run`."""
        # compilers and exporters see through this, and need not see a message
        if self._graphs is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return run(x)
        reason = self._graph_refusal(x)
        if reason is None:
            return self._graphs.run(call, run, x, (t for of in (self.parameters, self.buffers) for t in of()))
        if reason not in self._graph_refusals:
            # once each: asked for, and not what happens
            self._graph_refusals.add(reason)
            _logger.log(
                logging.DEBUG if "part of a graph" in reason else logging.WARNING, "cuda_graph: no replay: %s", reason
            )
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
        self._plans = {}
        self._forget_graphs()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # packed for this machine's instruction set
        return self.__dict__ | {"_plans": {}}


def _forget(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, PlannedModule)
    module._plans = {}
    module._forget_graphs()
