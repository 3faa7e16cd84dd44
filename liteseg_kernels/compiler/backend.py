"""`torch.compile(net, backend="liteseg")`, and the same as a function that gives a module back."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as tf

from .. import _loader
from . import same_padding
from .lower import described, label
from .report import GraphReport, Left
from .resize import interpolate
from .take import take
from .whole import stand_in

# of the graphs that were compiled last
REPORTS: deque[GraphReport] = deque(maxlen=64)
RESTS = ("auto", "eager", "inductor")

Compiled = Callable[..., Any]

# torch.compile imports this file by the backend's name, before it traces. In the backend itself it would be too late:
# Dynamo may trace a function twice and has to find the same one
same_padding.substitute()


def _exchange(module: fx.GraphModule) -> Callable[[], None]:
    """Put this package's ops in the places of torch's that AOTAutograd takes apart. Returns what puts torch's back."""
    before = []
    for node in module.graph.nodes:
        ours = stand_in(node)
        if ours is None and (node.op != "call_function" or node.target is not tf.interpolate):
            continue
        before.append((node, node.target, node.args, node.kwargs))
        if ours is None:
            node.target = interpolate
            node.kwargs = {"x" if key == "input" else key: value for key, value in node.kwargs.items()}
        else:
            node.target, node.args, node.kwargs = *ours, {}
    module.recompile()

    def restore() -> None:
        for node, target, args, kwargs in before:
            node.target, node.args, node.kwargs = target, args, kwargs
        module.recompile()

    return restore


def _records_gradients(module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    tensors = [*(x for x in inputs if isinstance(x, Tensor)), *module.parameters()]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _without_weights(module: fx.GraphModule, inputs: Sequence[Any]) -> list[Left]:
    """What is left of a graph without weights that a part could have, or nothing: tracing it again can be spared."""
    tensors = [*(x for x in inputs if isinstance(x, Tensor)), *module.parameters(), *module.buffers()]
    if any(t.dim() == 4 and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors):
        return []
    made = [(node, node.meta.get("example_value")) for node in module.graph.nodes if node.op == "call_function"]
    return [
        Left(label(node), node._pretty_print_target(node.target), described(value))
        for node, value in made
        if isinstance(value, Tensor)
    ]


def _check_rest(caller: str, rest: str) -> None:
    if rest not in RESTS:
        raise ValueError(f"{caller}: rest: expected one of {', '.join(map(repr, RESTS))}, got {rest!r}")


def compile_graph(
    module: fx.GraphModule, inputs: Sequence[Any], *, rest: str = "auto", reports: Any = REPORTS
) -> Compiled:
    """Dynamo's backend: compile a graph that it captured.

    Inference graphs of float32 maps on the CPU are taken as far as the compiled layers reach; what is left runs as
    `rest` says. Every other graph (gradients, other dtypes, other devices) is left whole.

    Args:
        rest: who runs graphs of which nothing is taken: "eager", or "inductor" and "auto" for Inductor. Where gradients
            are recorded, and around the parts that are taken, torch's own ops run.
    """
    _check_rest("liteseg", rest)
    if _records_gradients(module, inputs):
        reports.append(GraphReport([], [], "eager: gradients are recorded"))
        return module.forward
    left: list[Left] = []
    if _loader.missing("cpu") is None:
        left = _without_weights(module, inputs)
        if not left:
            ours, report = _compile_inference(module, inputs)
            if report.taken:
                reports.append(report)
                return ours
            left = report.left
    if rest == "eager":
        reports.append(GraphReport([], left, "eager"))
        return module.forward
    from torch._inductor.compile_fx import compile_fx

    reports.append(GraphReport([], left, "Inductor"))
    compiled: Any = compile_fx(module, list(inputs))
    return compiled


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
    restore = _exchange(module)
    compiled = compiler(module, inputs)
    if not reports[-1].taken:
        # whoever compiles it now knows torch's own better
        restore()
    return compiled, reports[-1]


def dynamo_backend(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Compiled:
    """`compile_graph` as torch.compile calls it: options come by name or as `options={...}`."""
    settings = dict(options.pop("options", None) or {}) | options
    # torch.compile's own `mode` says nothing here
    settings.pop("mode", None)
    return compile_graph(module, inputs, **settings)


class Optimized(nn.Module):
    """What `optimize` returns: calls the network it was given, through the compiled kernels where they can be used.

    Attributes:
        net: the network, which may be changed, loaded and moved as before.
        reports: one `GraphReport` for each graph compiled so far.
    """

    def __init__(self, net: nn.Module, *, rest: str) -> None:
        super().__init__()
        self.net = net
        self.reports: list[GraphReport] = []
        # beside the network, not a part of it: the state_dict has each parameter once
        self._compiled = [torch.compile(net, backend=functools.partial(compile_graph, rest=rest, reports=self.reports))]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.net.training:
            return self.net(*args, **kwargs)
        for x in args:
            if isinstance(x, Tensor) and x.dim() == 4:
                # a hint to compile for any size at once, not an order
                torch._dynamo.maybe_mark_dynamic(x, (2, 3) if x.shape[0] == 1 else (0, 2, 3))
        with torch.no_grad():
            return self._compiled[0](*args, **kwargs)

    def report(self) -> str:
        """What was taken, by which layers, and what was left and why, for each graph compiled so far."""
        if not self.reports:
            raise ValueError("report: expected a network that was called, or an example for `optimize`, got neither")
        return "\n\n".join(map(str, self.reports))


def optimize(net: nn.Module, example: Any = None, *, rest: str = "auto") -> Optimized:
    """`net` for inference, by this library's kernels as far as they reach; same call, same results within rounding.

    The network stays as it is and shares its parameters with what is returned: changes to them are seen at the next
    call. In training mode the network's own forward runs, and so does every part that the kernels cannot follow.
    Gradients are not recorded in eval mode.

    Args:
        net: any module; nothing of it has to come from this library.
        example: its argument, or a tuple of them, to compile for now; otherwise the first call does. Height, width and
            batch may differ from call to call.
        rest: who runs a graph of which nothing is taken: "eager", or "inductor" and "auto" for Inductor.

    Returns: a module with the network's call, and `report()`.

    Example:
        >>> import torch, liteseg_kernels as lk
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, 2, 1), torch.nn.ReLU6(), torch.nn.Conv2d(32, 64, 1))
        >>> fast = lk.optimize(net.eval(), torch.randn(1, 3, 64, 96))
        >>> print(fast.report().splitlines()[0])
        2 layers in 1 call of the CPU kernels
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"optimize: net: expected a torch.nn.Module, got {type(net).__name__}")
    _check_rest("optimize", rest)
    _loader.warn_without_kernels()
    same_padding.substitute()
    optimized = Optimized(net, rest=rest)
    if example is not None:
        optimized(*(example if isinstance(example, tuple) else (example,)))
    return optimized
