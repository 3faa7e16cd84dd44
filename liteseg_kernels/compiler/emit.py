"""From a region's operations to the words of a program and its packed weights (csrc/engine/plan/graph.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan import contract
from ..plan.contract import constant
from ..plan.layers import Convolution as PlanConvolution
from ..plan.layers import Node
from ..plan.packing import Writer
from . import ir, patterns


def winograd_tile(op: ir.Convolution) -> int:
    """Side of the tiles of Winograd's method that are predicted to be fastest for a convolution, or 0."""
    if op.kernel != (3, 3) or op.stride != (1, 1) or len(set(op.padding)) > 1 or isinstance(op.inputs[0], ir.Input):
        return 0
    shape = (op.channels, op.inputs[0].channels, 3, 3)
    weights = {"weight": torch.empty(shape, device="meta")}
    options = {"kernel": 3, "stride": 1, "padding": op.padding[0], "dilation": op.dilation[0]}
    node = Node("convolution", op.name, (1,), op.channels, options, weights)
    layer = PlanConvolution([op.name], (1,), op.channels, node, None)
    layer.choose([op.inputs[0].shape])
    return 0 if layer.output and layer._in_passes() else layer.output


@dataclass(frozen=True)
class Sequenced:
    """A region's operations in the order of their work."""

    ops: list[ir.Op]
    results: list[ir.Op]
    # channels_last (True) or NCHW, for each result
    innermost: list[bool]

    @classmethod
    def of(cls, results: Sequence[ir.Op], innermost: Sequence[bool]) -> Sequenced:
        return cls(patterns.ordered(results), list(results), list(innermost))

    def inputs(self) -> list[int]:
        """Places of the maps in the region's arguments, in the order in which the compiled op takes them."""
        return [op.index for op in self.ops if isinstance(op, ir.Input)]

    def sizes(self) -> list[Any]:
        """Sizes that the compiled op takes, two for each operation that resizes."""
        return [size for op in self.ops for size in _sizes(op)]

    def weights(self) -> list[int]:
        """Places of the parameters in the region's arguments."""
        places: dict[int, None] = {}
        for op in self.ops:
            for part in parts(op):
                places |= dict.fromkeys(part.places())
        return list(places)

    def emit(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Packed weights and program."""
        out = Writer(torch.ops.liteseg_cpu.panel(), "graph")
        number: dict[ir.Op, int] = {}
        emitter = _Emitter(out, number, arguments)
        maps = [op for op in self.ops if not isinstance(op, ir.Labels)]
        out.add(constant("version.graph"), out.panel, len(maps))
        for op in self.ops:
            if isinstance(op, ir.Labels):
                emitter.sized(op)
                continue
            emitter.emit(op)
            number[op] = len(number)
        out.add(len(self.results))
        for op, innermost in zip(self.results, self.innermost, strict=True):
            if not isinstance(op, ir.Labels):
                out.add(number[op], constant("result.innermost" if innermost else "result.planar"))
                continue
            out.add(number[op.inputs[0]], constant("result.labels"), op.sizes is not None)
            if op.sizes is not None:
                out.add(*emitter.slots[op])
            out.add(op.align_corners)
        return out.packed(), torch.tensor(out.words, dtype=torch.int64)


def parts(op: ir.Op) -> list[ir.Weighted]:
    """The convolutions that an operation is or consists of."""
    if isinstance(op, ir.Weighted):
        return [op]
    if isinstance(op, ir.Block):
        return [part for part in (op.expand, op.depthwise, op.project) if part is not None]
    if isinstance(op, ir.Stem):
        return [part for part in (op.conv, op.depthwise, op.project) if part is not None]
    return []


def _sizes(op: ir.Op) -> tuple[Any, ...]:
    if isinstance(op, (ir.Resize, ir.Nearest)):
        return op.sizes
    return op.sizes or () if isinstance(op, ir.Labels) else ()


class _Emitter:
    def __init__(self, out: Writer, number: dict[ir.Op, int], arguments: Sequence[Any]) -> None:
        self.out = out
        self._number = number
        self._arguments = arguments
        self._inputs = 0
        self._next_slot = 0
        self.slots: dict[ir.Op, tuple[int, int]] = {}

    def emit(self, op: ir.Op) -> None:
        self._RULES[type(op)](self, op)

    def sized(self, op: ir.Op) -> tuple[int, int]:
        if _sizes(op):
            self.slots[op] = (self._next_slot, self._next_slot + 1)
            self._next_slot += 2
        return self.slots.get(op, (0, 0))

    def _sources(self, op: ir.Op) -> list[int]:
        return [self._number[source] for source in op.inputs]

    def _activation(self, activation: ir.Activation) -> None:
        bits = struct.unpack("<I", struct.pack("<f", activation.negative_slope))[0]
        self.out.add(contract.activation(activation.name), bits)

    def _matrix(self, part: ir.Weighted) -> None:
        weight, bias = part.folded(self._arguments)
        self.out.matrix(weight)
        self.out.bias(bias, part.channels)

    def _taps(self, part: ir.Weighted) -> None:
        weight, bias = part.folded(self._arguments)
        self.out.depthwise(weight)
        self.out.bias(bias, part.channels)

    def _input(self, op: ir.Input) -> None:
        self.out.layer("input", self._inputs, op.channels)
        self._inputs += 1

    def _convolution(self, op: ir.Convolution) -> None:
        tile = winograd_tile(op)
        channels = op.inputs[0].channels
        if tile:
            self.out.layer(
                "winograd",
                *self._sources(op),
                channels,
                op.channels,
                op.padding[0],
                op.dilation[0],
                tile // 2,
            )
            self._activation(op.activation)
            weight, bias = op.folded(self._arguments)
            self.out.winograd(weight, tile)
            self.out.bias(bias, op.channels)
            return
        self.out.layer("convolution", channels, op.channels, op.kernel[0], op.stride[0], op.dilation[0], *op.padding)
        self._activation(op.activation)
        self.out.add(*self._sources(op))
        self._matrix(op)

    def _geometry(self, op: ir.Weighted) -> None:
        self.out.add(*op.kernel, *op.stride, *op.dilation, *op.padding)

    def _depthwise(self, op: ir.Depthwise) -> None:
        self.out.layer("depthwise", *self._sources(op), op.channels)
        self._geometry(op)
        self._activation(op.activation)
        self._taps(op)

    def _block(self, op: ir.Block) -> None:
        assert op.depthwise is not None and op.project is not None
        self.out.layer("inverted_residual", *self._sources(op), op.inputs[0].channels, op.expand is not None)
        self.out.add(op.depthwise.channels, op.channels)
        self._geometry(op.depthwise)
        self._activation(op.depthwise.activation)
        self._activation(op.activation)
        self.out.add(op.residual)
        if op.expand is not None:
            self._matrix(op.expand)
        self._taps(op.depthwise)
        self._matrix(op.project)

    def _stem(self, op: ir.Stem) -> None:
        assert op.conv is not None and op.depthwise is not None and op.project is not None
        plain = [contract.activation(part.activation.name) for part in (op.conv, op.depthwise)]
        self.out.layer("stem", *self._sources(op), op.inputs[0].channels, op.conv.channels, op.conv.stride[0])
        self.out.add(*op.conv.padding, plain[0])
        self.out.add(op.channels, plain[1])
        self._matrix(op.conv)
        self._taps(op.depthwise)
        self._matrix(op.project)

    def _window(self, op: ir.Window) -> None:
        self.out.layer("window", *self._sources(op), op.maximum, op.counts_zeros, *op.kernel, *op.stride, *op.padding)

    def _combine(self, op: ir.Combine) -> None:
        self.out.layer("combine", constant("combine.multiply" if op.multiplies else "combine.add"), *self._sources(op))
        self._activation(op.activation)

    def _mean(self, op: ir.Mean) -> None:
        self.out.layer("mean", *self._sources(op))

    def _concat(self, op: ir.Concat) -> None:
        self.out.layer("concat", len(op.inputs), *self._sources(op))

    def _resize(self, op: ir.Resize) -> None:
        sources = self._sources(op)
        self.out.layer("resize", sources[0], *self.sized(op), op.align_corners, len(sources) > 1, *sources[1:])

    def _nearest(self, op: ir.Nearest) -> None:
        self.out.layer("nearest", *self._sources(op), *self.sized(op))

    def _pad(self, op: ir.Pad) -> None:
        self.out.layer("pad", *self._sources(op), *op.padding)

    def _activate(self, op: ir.Activate) -> None:
        self.out.layer("activate", *self._sources(op))
        self._activation(op.activation)

    _RULES: dict[type[ir.Op], Callable[..., None]] = {
        ir.Input: _input,
        ir.Convolution: _convolution,
        ir.Depthwise: _depthwise,
        ir.Block: _block,
        ir.Stem: _stem,
        ir.Window: _window,
        ir.Combine: _combine,
        ir.Mean: _mean,
        ir.Concat: _concat,
        ir.Resize: _resize,
        ir.Nearest: _nearest,
        ir.Pad: _pad,
        ir.Activate: _activate,
    }
