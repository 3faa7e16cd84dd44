"""What `plan()` of a fused network says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layers import Shape


@dataclass(frozen=True)
class LayerReport:
    """One layer of a plan for one input size and one image.

    Attributes:
        name: the modules it replaces.
        strategy: how the kernel goes about it.
        shape: (channels, height, width) of its result.
        macs: multiply-adds.
        bytes: read and written at least: its inputs, its result, its packed weights and what passes over all of it
            store in between, once each, in the plan's dtype.
        seconds: measured, or None.
    """

    name: str
    strategy: str
    shape: Shape
    macs: int
    bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class PlanReport:
    """What `plan()` of a fused network says; prints as a table."""

    size: tuple[int, int]
    layers: tuple[LayerReport, ...]
    threads: int | None = None
    dtype: torch.dtype = torch.float32
    # bytes of all packed weights, which the plan keeps beside the modules' own
    packed_bytes: int = 0

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def __str__(self) -> str:
        timed = self.threads is not None
        rows = [("layer", "strategy", "result", "MMAC", "MB", *(("ms", "GMAC/s") if timed else ()))]
        for layer in self.layers:
            row = [layer.name, layer.strategy, "x".join(map(str, layer.shape))]
            row += [f"{layer.macs / 1e6:.1f}", f"{layer.bytes / 1e6:.2f}"]
            if layer.seconds is not None:
                row += [f"{layer.seconds * 1e3:.3f}", f"{layer.macs / max(layer.seconds, 1e-9) / 1e9:.1f}"]
            rows.append(tuple(row))
        total = ["total", "", "", f"{self.macs / 1e6:.1f}", f"{self.bytes / 1e6:.2f}"]
        if timed:
            seconds = sum(layer.seconds or 0.0 for layer in self.layers)
            total += [f"{seconds * 1e3:.3f}", f"{self.macs / max(seconds, 1e-9) / 1e9:.1f}"]
        rows.append(tuple(total))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        dtype = str(self.dtype).removeprefix("torch.")
        title = f"{self.size[0]}x{self.size[1]}, {dtype}, batch 1, {self.packed_bytes / 1e6:.1f} MB of packed weights"
        title += f", {self.threads} threads" if timed else ""
        return "\n".join([title, *(line.rstrip() for line in lines)])
