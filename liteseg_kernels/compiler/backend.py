"""`torch.compile(net, backend="liteseg")`, and the same as a function that gives a module back."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as tf

from .. import _loader
from .report import GraphReport
from .resize import interpolate
from .take import take

_logger = logging.getLogger("liteseg_kernels")

# of the graphs that were compiled last
REPORTS: deque[GraphReport] = deque(maxlen=64)
RESTS = ("auto", "eager", "inductor")

Compiled = Callable[..., Any]


def _exchange(module: fx.GraphModule, old: Any, new: Any, first: str) -> None:
    """Call `new` wherever a graph calls `old`; `first` is the name of the first argument of `new`."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is old:
            node.target = new
            node.kwargs = {first if name in ("input", "x") else name: value for name, value in node.kwargs.items()}
    module.recompile()


def _records_gradients(module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    tensors = [*(x for x in inputs if isinstance(x, Tensor)), *module.parameters()]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _left_alone(reason: str, rest: str) -> GraphReport:
    report = GraphReport([], [], rest if not reason else f"{rest}: {reason}")
    return report


def compile_graph(
    module: fx.GraphModule, inputs: Sequence[Any], *, rest: str = "auto", reports: Any = REPORTS
) -> Compiled:
    """Dynamo's backend: compile a graph that it captured.

    Inference graphs of float32 maps on the CPU are taken as far as the compiled layers reach; what is left runs as
    `rest` says. Every other graph (gradients, other dtypes, other devices) is left whole.

    Args:
        rest: "eager" runs it by torch's own ops, "inductor" gives graphs of which nothing was taken to Inductor;
            "auto" is "inductor" for those, except where gradients are recorded.
    """
    if rest not in RESTS:
        raise ValueError(f"liteseg: rest: expected one of {', '.join(map(repr, RESTS))}, got {rest!r}")
    if _records_gradients(module, inputs):
        reports.append(_left_alone("gradients are recorded", "eager"))
        return module.forward
    missing = _loader.missing("cpu")
    if missing is None:
        compiled, report = _compile_inference(module, inputs)
        if report.taken:
            reports.append(report)
            return compiled
        left = report.left
    else:
        left = []
    if rest == "eager":
        reports.append(GraphReport([], left, "eager"))
        return module.forward
    from torch._inductor.compile_fx import compile_fx

    reports.append(GraphReport([], left, "Inductor"))
    return compile_fx(module, list(inputs))


def _compile_inference(module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[Compiled, GraphReport]:
    from torch._dynamo.backends.common import aot_autograd

    reports: list[GraphReport] = []

    def compile_aten(aten_module: fx.GraphModule, example: Sequence[Any]) -> Compiled:
        from functorch.compile import make_boxed_func

        context = torch._guards.TracingContext.try_get()
        assert context is not None and context.fw_metadata is not None
        placeholders = [node for node in aten_module.graph.nodes if node.op == "placeholder"]
        static = {placeholders[i] for i in context.fw_metadata.static_input_indices}
        reports.append(take(aten_module, lambda node: node in static or node.op == "get_attr"))
        return make_boxed_func(aten_module.forward)

    compiler = aot_autograd(fw_compiler=compile_aten, inference_compiler=compile_aten)
    _exchange(module, tf.interpolate, interpolate, "x")
    compiled = compiler(module, inputs)
    if not reports[-1].taken:
        # whoever compiles it now knows torch's own better
        _exchange(module, interpolate, tf.interpolate, "input")
    return compiled, reports[-1]


def dynamo_backend(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Compiled:
    """`compile_graph` as torch.compile calls it: options come by name or as `options={...}`."""
    settings = dict(options.pop("options", None) or {}) | options
    # torch.compile's own `mode` says nothing here
    settings.pop("mode", None)
    return compile_graph(module, inputs, **settings)


class Optimized(nn.Module):
    """What `optimize` returns: calls the network it was given, through the compiled kernels where they can be used."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__()
        self.net = net
        self._reports: list[GraphReport] = []
        backend = functools.partial(compile_graph, reports=self._reports, **options)
        self._compiled = torch.compile(net, backend=backend)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.net.training:
            return self.net(*args, **kwargs)
        with torch.no_grad():
            return self._compiled(*args, **kwargs)

    def report(self) -> str:
        """What was taken, by which layers, and what was left and why, for each graph compiled so far."""
        if not self._reports:
            raise ValueError("report: expected a network that was called before, or an example for `optimize`, got none")
        return "\n\n".join(map(str, self._reports))


def optimize(net: nn.Module, example: Any = None, **options: Any) -> Optimized:
    """`net` for inference, by this library's kernels as far as they reach; same call, same results within rounding.

    The network stays as it is and shares its parameters with what is returned: writing to them is seen at the next
    call. In training mode, and wherever else the kernels cannot follow, the network's own forward runs. Gradients are
    not recorded in eval mode.

    Args:
        net: any module; nothing of it has to come from this library.
        example: its argument, or a tuple of them, to compile for now; otherwise the first call does.
        options: as for `torch.compile(net, backend="liteseg", options=...)`: `rest="auto"`, `"eager"` or `"inductor"`
            runs what is left.

    Returns: a module with the network's call, and `report()`.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"optimize: net: expected a torch.nn.Module, got {type(net).__name__}")
    optimized = Optimized(net, **options)
    if example is not None:
        optimized(*(example if isinstance(example, tuple) else (example,)))
    return optimized
