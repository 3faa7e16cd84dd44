"""A network as one program and one tensor of packed weights, ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .contract import constant
from .layers import Layer, Shape
from .packing import Unplannable, Writer
from .program import Program
from .report import LayerReport, PlanReport

# what strategies are chosen for; they depend on the ratios of sizes only, which hardly change with the input's size
_TYPICAL_SIZE = (512, 1024)


def write(program: Program, out: Writer) -> tuple[tuple[Layer, ...], tuple[tuple[int, ...], ...]]:
    """The whole program into `out`; its layers, and the maps that each one reads. Raises Unplannable."""
    layers, values = program.layers()
    for layer in layers:
        if out.dtype not in layer.dtypes:
            raise Unplannable(f"{' + '.join(layer.names)}: no kernel for {out.dtype}")
    number = {0: 0} | {value: index + 1 for index, value in enumerate(values)}
    version = "version.bf16_plan" if out.dtype == torch.bfloat16 else "version.plan"
    out.add(constant(version), out.panel, len(layers))
    inputs = []
    shapes: list[Shape] = [(program.channels(0), *_TYPICAL_SIZE)]
    for layer in layers:
        inputs.append(tuple(number[value] for value in layer.inputs))
        given = [shapes[i] for i in inputs[-1]]
        layer.choose(given)
        layer.write(out, inputs[-1])
        shapes.append(layer.shape(given))
    return tuple(layers), tuple(inputs)


@dataclass(frozen=True)
class Plan:
    """A compiled program and its packed weights. Holds no state: any number of threads may call it at once."""

    packed: Tensor
    program: Tensor
    in_channels: int
    dtype: torch.dtype
    layers: tuple[Layer, ...] = field(repr=False)
    inputs: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def compile(cls, program: Program, dtype: torch.dtype = torch.float32) -> Plan:
        """Raises Unplannable where a part of the network has no layer, or none of this dtype."""
        out = Writer(torch.ops.liteseg_cpu.panel(), dtype=dtype)
        layers, inputs = write(program, out)
        words = torch.tensor(out.words, dtype=torch.int64)
        return cls(out.packed(), words, program.channels(0), dtype, layers, inputs)

    @property
    def classes(self) -> int:
        """Channels of the last layer's output."""
        return self.layers[-1].channels

    def logits(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the last layer's output [N, K, h, w] in the plan's dtype and x's memory format."""
        return self._run(x, [])

    def labels(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """[N, C, H, W] -> uint8 [N, *size]: arg max of logits resized to `size` (bilinear, aligned corners). The logits
        are float32 in a bfloat16 plan too. At most 256 classes."""
        return self._run(x, list(size))

    def _run(self, x: Tensor, size: list[int]) -> Tensor:
        # a conversion to the same dtype does nothing, in 20 us after a network has emptied the caches
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        return torch.ops.liteseg_cpu.run_plan(x, self.packed, self.program, size)

    def report(self, size: tuple[int, int], *, profile: bool = False, rounds: int = 20) -> PlanReport:
        """Layers with shapes, multiply-adds and bytes for one image of `size`; with `profile`, also the time of each in
        the fastest of `rounds` runs on random input, measured between the barriers."""
        seconds: list[float] | None = None
        if profile:
            x = torch.randn(1, self.in_channels, *size).to(self.dtype, memory_format=torch.channels_last)
            times = [torch.ops.liteseg_cpu.time_plan(x, self.packed, self.program, list(size)) for _ in range(rounds)]
            seconds = min(times, key=lambda of_layers: float(of_layers.sum())).tolist()
        shapes: list[Shape] = [(self.in_channels, *size)]
        reports = []
        for index, (layer, inputs) in enumerate(zip(self.layers, self.inputs, strict=True)):
            given = [shapes[i] for i in inputs]
            shapes.append(layer.shape(given))
            reports.append(
                LayerReport(
                    " + ".join(layer.names),
                    layer.strategy_for(given),
                    shapes[-1],
                    layer.macs(given),
                    layer.bytes(given, self.dtype.itemsize),
                    None if seconds is None else seconds[index],
                )
            )
        classes, height, width = shapes[-1]
        reports.append(
            LayerReport(
                "labels",
                "resized logits in registers",
                (1, *size),
                2 * classes * size[0] * (size[1] + width),
                4 * classes * height * width + size[0] * size[1],
                None if seconds is None else seconds[-1],
            )
        )
        threads = torch.get_num_threads() if profile else None
        return PlanReport(size, tuple(reports), threads, self.dtype, self.packed.nbytes)
