"""What became of a graph: which parts the compiled op runs, by which layers, and what stayed and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import ir
from .emit import winograd_tile

if TYPE_CHECKING:
    from .region import Region

# multiply-adds in the time in which a byte comes from outside the second level of cache
_MACS_PER_BYTE = 4


@dataclass(frozen=True)
class LayerReport:
    """One layer for one image of the size that the graph was traced with.

    Attributes:
        name: the module it comes from.
        layer: what runs.
        shape: (channels, height, width) of its result.
        macs: multiply-adds.
        share: predicted share of the time of all that was taken, from multiply-adds and bytes.
    """

    name: str
    layer: str
    shape: ir.Shape
    macs: int
    share: float


@dataclass(frozen=True)
class Left:
    """A node that stays as it is."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Taken:
    """A part that the compiled op runs."""

    name: str
    region: Region = field(repr=False)

    def ops(self) -> list[ir.Op]:
        return [op for op in self.region.work.ops if not isinstance(op, ir.Input)]


def _cost(op: ir.Op) -> int:
    floats = sum(source.channels * source.pixels() for source in op.inputs) + op.channels * op.pixels()
    return op.macs() + _MACS_PER_BYTE * 4 * floats


def _describe(op: ir.Op) -> str:
    if isinstance(op, ir.Convolution):
        tile = winograd_tile(op)
        if tile:
            return f"{op.describe()} (Winograd, {tile}x{tile})"
    return op.describe()


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph; prints as a table."""

    taken: list[Taken]
    left: list[Left]
    # who runs what is left
    rest: str = "eager"

    @property
    def layers(self) -> list[LayerReport]:
        ops = [op for part in self.taken for op in part.ops()]
        total = sum(map(_cost, ops)) or 1
        return [LayerReport(op.name, _describe(op), op.shape, op.macs(), _cost(op) / total) for op in ops]

    def __str__(self) -> str:
        layers = self.layers
        rows = [("layer", "runs as", "result", "MMAC", "share")]
        for layer in layers:
            shape = "x".join(map(str, layer.shape))
            rows.append((layer.name, layer.layer, shape, f"{layer.macs / 1e6:.1f}", f"{layer.share:.1%}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        calls = "1 call" if len(self.taken) == 1 else f"{len(self.taken)} calls"
        head = f"{len(layers)} layers in {calls} of the CPU kernels"
        if not self.taken:
            return "\n".join([f"nothing taken, all runs by {self.rest}", *self._left()])
        return "\n".join([head, *lines, *self._left()])

    def _left(self) -> list[str]:
        counts = Counter((left.op, left.reason) for left in self.left)
        if not counts:
            return ["nothing left"]
        lines = [f"left to {self.rest}:"]
        return lines + [f"  {count} x {op}: {reason}" for (op, reason), count in counts.most_common()]
