"""Finds the parts of an aten graph that the compiled op runs, and puts `Region`s in their places."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner, Partition
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.utils._sympy.printers import PythonPrinter

from .lower import aten, first_value, label, number, refusal
from .region import Region
from .report import GraphReport, Left, Taken

# a region has to do about as much work as a call costs: multiply-adds
_LEAST_MACS = 1_000_000

IsStatic = Callable[[fx.Node], bool]


class _Support(OperatorSupportBase):
    def __init__(self, is_static: IsStatic) -> None:
        self._is_static = is_static
        self.reasons: dict[fx.Node, str | None] = {}

    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        if node not in self.reasons:
            self.reasons[node] = refusal(node, self._is_static)
        return self.reasons[node] is None


@functools.cache
def _function(expression: str, names: tuple[str, ...]) -> Callable[..., int]:
    made: Callable[..., int] = eval(f"lambda {', '.join(names)}: int({expression})", {"math": math, "torch": torch})
    return made


def computed(expression: str, names: tuple[str, ...], *values: int) -> int:
    """A size, from Python that sympy wrote."""
    return _function(expression, names)(*values)


def hoist_sizes(graph: fx.Graph) -> None:
    """Compute the sizes that maps are resized to from the inputs' shapes alone, before everything else.

    Traced, they come from maps inside the graph: then a region would have to end before each of them.
    """
    resizes = [node for node in graph.nodes if node.target is torch.ops.liteseg.resize.default]
    wanted = dict.fromkeys(size for node in resizes for size in node.args[1] if isinstance(size, fx.Node))
    if not wanted:
        return
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    made: dict[sympy.Expr, Any] = {}
    # in front of the first node that is no placeholder
    with graph.inserting_before(placeholders[-1].next):
        symbols: dict[sympy.Symbol, fx.Node] = {}
        for node in placeholders:
            value = node.meta.get("val")
            for dim, size in enumerate(value.shape if isinstance(value, Tensor) else (value,)):
                if not isinstance(size, torch.SymInt) or not isinstance(size.node.expr, sympy.Symbol):
                    continue
                if size.node.expr in symbols:
                    continue
                source = node
                if isinstance(value, Tensor):
                    source = graph.call_function(aten.sym_size.int, (node, dim))
                    source.meta["val"] = size
                symbols[size.node.expr] = source
        for node in wanted:
            size = node.meta["val"]
            expression = size.node.expr
            free = sorted(expression.free_symbols, key=str)
            if expression in made or not symbols.keys() >= set(free):
                continue
            if expression.is_Symbol:
                made[expression] = symbols[expression]
            elif free:
                given = (PythonPrinter().doprint(expression), tuple(map(str, free)), *(symbols[s] for s in free))
                made[expression] = graph.call_function(computed, given)
            else:
                made[expression] = int(expression)
            if isinstance(made[expression], fx.Node):
                made[expression].meta |= {"val": size, "hoisted": True}
    for resize in resizes:
        sizes = [
            made.get(size.meta["val"].node.expr, size) if isinstance(size, fx.Node) else size for size in resize.args[1]
        ]
        resize.args = (resize.args[0], sizes, *resize.args[2:])


def _worth(partition: Partition) -> bool:
    """Whether a part has convolutions enough to be taken."""
    macs = 0
    for node in partition.nodes:
        if node.target is aten.convolution.default:
            value, weight = first_value(node), node.args[1].meta["val"]  # type: ignore[union-attr]
            macs += math.prod(number(s) for s in value.shape) * math.prod(number(s) for s in weight.shape[1:])
    return macs >= _LEAST_MACS


def take(module: fx.GraphModule, is_static: IsStatic) -> GraphReport:
    """Replace what can be taken in place.

    Args:
        module: a functional aten graph with `meta["val"]` on every node, for inference.
        is_static: whether a node is a parameter or buffer: a tensor that is the same at every call, though its values
            may change.
    """
    hoist_sizes(module.graph)
    support = _Support(is_static)
    partitioner = CapabilityBasedPartitioner(module, support, allows_single_node_partition=True)
    partitions = [p for p in partitioner.propose_partitions() if _worth(p)]
    inside = {node for partition in partitions for node in partition.nodes}
    left = [
        Left(label(node), str(node.target), support.reasons.get(node) or "too little work around it for a call")
        for node in module.graph.nodes
        if node.op == "call_function" and node not in inside and isinstance(first_value(node), Tensor)
    ]
    names = [f"fused_{index}" for index in range(len(partitions))]
    partitioner.fuse_partitions(partitions, prefix="fused_")
    taken = []
    for name in names:
        region = Region(module.get_submodule(name).graph)  # type: ignore[arg-type]
        module.set_submodule(name, region)
        taken.append(Taken(name, region))
    module.graph.lint()
    module.recompile()
    return GraphReport(taken, left)
