"""A part of a graph that runs as one call of the compiled op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import ir
from .emit import Sequenced
from .lower import innermost, lower
from .patterns import rewrite


class Region(nn.Module):
    """Takes what the nodes it stands for took. Weights are folded and packed at the first call, and again whenever
    one of them has changed since: by torch's version counters, and for writes that these do not see (`weight.data`) by
    samples of the values."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        results, nodes = lower(graph)
        # the layout of labels [N, H, W] is always the same
        layouts = [not isinstance(op, ir.Labels) and innermost(node) for op, node in zip(results, nodes, strict=True)]
        self.work = Sequenced.of(rewrite(results), layouts)
        output = next(node for node in graph.nodes if node.op == "output")
        self._single = not isinstance(output.args[0], (tuple, list))
        self._maps = self.work.inputs()
        self._sizes = self.work.sizes()
        self._weights = self.work.weights()
        # what was packed from which weights; one assignment, so that threads see both or neither
        self._packed: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def packed(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Packed weights and program for these arguments."""
        weights = [arguments[place] for place in self._weights]
        versions = (-1 if weight.is_inference() else weight._version for weight in weights)
        key = (torch.ops.liteseg_cpu.fingerprint(weights), *versions)
        held = self._packed
        if held is None or held[0] != key:
            with torch.no_grad(), torch.inference_mode(False):
                held = (key, *self.work.emit(arguments))
            self._packed = held
        return held[1:]

    def compiled_arguments(self, arguments: Sequence[Any]) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
        """What liteseg_cpu::run_graph takes for a call with these arguments."""
        sizes = [int(arguments[s.index] if isinstance(s, ir.Argument) else s) for s in self._sizes]
        return [arguments[place] for place in self._maps], *self.packed(arguments), sizes

    def forward(self, *arguments: Any) -> Any:
        made = torch.ops.liteseg_cpu.run_graph(*self.compiled_arguments(arguments))
        return made[0] if self._single else tuple(made)

    def time(self, arguments: Sequence[Any]) -> list[float]:
        """Seconds of each operation of `work`, the results' copies last."""
        return torch.ops.liteseg_cpu.time_graph(*self.compiled_arguments(arguments)).tolist()
