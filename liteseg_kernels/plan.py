"""Runs a whole fused network on the CPU from one program and one tensor of packed weights.

A network describes itself once: its modules call the methods of `Program` in the order of their work (`lower`). `Plan`
turns that into the few layers that the compiled op `liteseg_cpu::run_plan` knows, each of which does the work of
several modules in one pass, and packs the weights. Shapes stay open: one plan serves any input size.

The op takes float32, and bfloat16 where the processor multiplies it (AVX512_BF16) and every layer has a kernel for it.
Everything else (other dtypes, gradients, another backend asked for, tracing) runs module by module as before: see
`PlannedModule.plan_for`.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from . import _dispatch, _loader
from .graphs import GraphCache, GraphReport

__all__ = ["LayerReport", "Plan", "PlanReport", "PlannedModule", "Program", "Unplannable"]

_logger = logging.getLogger("liteseg_kernels")

_VERSION = 1
# the first word of a program by the dtype of its weights
_VERSIONS = {torch.float32: _VERSION, torch.bfloat16: _VERSION + 256}
_STEM, _INVERTED_RESIDUAL, _PYRAMID, _DECODER = 1, 2, 3, 4
_STEM_POOL, _SHUFFLE_UNIT, _CONVOLUTION, _WINOGRAD, _MAX_POOL = 5, 6, 7, 8, 9
_ACTIVATIONS: tuple[str | None, ...] = (None, "relu", "relu6")
_MOST_BRANCHES = 8
_MOST_TAPS = 7
# floats, the widest vector of any instruction set; also 64 bytes
_VECTOR = 16
# floats of the largest compressed map of a shuffle unit that is stored
_MOST_STORED = 1 << 18

# what strategies are chosen for; they depend on the ratios of sizes only, which hardly change with the input's size
_TYPICAL_SIZE = (512, 1024)

Shape = tuple[int, int, int]  # channels, height, width


class Unplannable(Exception):
    """A network that no plan covers; its text says which part."""


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _activation(name: str | None) -> int:
    if name not in _ACTIVATIONS:
        raise Unplannable(f"activation {name!r}")
    return _ACTIVATIONS.index(name)


def _sloped_activation(options: dict[str, Any]) -> tuple[int, int]:
    """The words of an activation that may be leaky: its number and the bits of its slope as a float."""
    slope = struct.unpack("<I", struct.pack("<f", options["negative_slope"]))[0]
    if options["activation"] == "leaky_relu":
        return len(_ACTIVATIONS), slope
    return _activation(options["activation"]), slope


def _convolved(size: int, stride: int, dilation: int = 1) -> int:
    """Length of one side after a 3x3 convolution with padding = dilation."""
    return (size - 1) // stride + 1


class _Writer:
    """Collects the words of a program and the packed weights they point to."""

    def __init__(self, panel: int) -> None:
        self.panel = panel
        self.words: list[int] = []
        self._pieces: list[Tensor] = []
        self._floats = 0

    def add(self, *words: int) -> None:
        self.words += [int(word) for word in words]

    def _weight(self, values: Tensor) -> None:
        flat = values.reshape(-1)
        self.add(self._floats)
        room = _round_up(flat.numel(), _VECTOR)
        self._pieces.append(nn.functional.pad(flat, (0, room - flat.numel())))
        self._floats += room

    def matrix(self, weight: Tensor) -> None:
        """[N, K] or [N, K, h, w] as panels [N / panel][rows of taps, channels innermost][panel]."""
        rows = weight.float().movedim(1, -1).flatten(1)
        rows = nn.functional.pad(rows, (0, 0, 0, _round_up(rows.shape[0], self.panel) - rows.shape[0]))
        self._weight(rows.unflatten(0, (-1, self.panel)).transpose(1, 2))

    def winograd(self, weight: Tensor, output: int) -> None:
        """[N, C, 3, 3] transformed for tiles of `output` x `output` pixels: [N / panel][(output + 2)^2][C][panel]."""
        transform = _winograd_transform(output)
        both = torch.kron(transform, transform)
        weight = nn.functional.pad(weight, (0,) * 7 + (_round_up(weight.shape[0], self.panel) - weight.shape[0],))
        # in float64, a panel at a time
        panels = (both @ rows.double().permute(2, 3, 1, 0).reshape(9, -1) for rows in weight.split(self.panel))
        self._weight(torch.cat([panel.float().flatten() for panel in panels]))

    def bias(self, bias: Tensor | None, channels: int) -> None:
        padded = torch.zeros(_round_up(channels, self.panel))
        if bias is not None:
            padded[:channels] = bias
        self._weight(padded)

    def grouped(self, weight: Tensor, bias: Tensor, groups: int) -> None:
        """[N, K / groups, 1, 1] and [N]: the matrices of all groups, in panels of three vectors and what is left, then
        their biases."""
        columns, vector = weight.shape[0] // groups, self.panel // 2
        short = _round_up(columns, vector) - columns
        rows = nn.functional.pad(weight.float().flatten(1).unflatten(0, (groups, columns)), (0, 0, 0, short))
        self._weight(torch.cat([part.transpose(1, 2).flatten(1) for part in rows.split(3 * vector, 1)], 1))
        self._weight(nn.functional.pad(bias.float().unflatten(0, (groups, columns)), (0, short)))

    def depthwise(self, weight: Tensor, channels: int | None = None) -> None:
        """[C, 1, 3, 3] as [9][C], with zeros up to `channels`."""
        taps = weight.float().flatten(1).t()
        self._weight(nn.functional.pad(taps, (0, (channels or taps.shape[1]) - taps.shape[1])))

    def inner_depthwise(self, weight: Tensor) -> None:
        """The same for a map that the layer itself makes, in the kernel's own layout."""
        self.depthwise(weight)

    def packed(self) -> Tensor:
        """All weights; the writer keeps none of them, so that they are in memory only once."""
        out = torch.empty(self._floats)
        at = 0
        while self._pieces:
            piece = self._pieces.pop(0)
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out


class _Bf16Writer(_Writer):
    """Matrices as words of two neighbouring rows, each word in the place of a float."""

    def matrix(self, weight: Tensor) -> None:
        """[N, K] or [N, K, h, w] as panels [N / panel][h stretches of taps and channels, made even][panel] of words."""
        rows = weight.float()
        rows = rows[:, None] if rows.dim() == 2 else rows.movedim(1, -1).flatten(2)
        columns = _round_up(rows.shape[0], self.panel) - rows.shape[0]
        rows = nn.functional.pad(rows, (0, rows.shape[2] % 2, 0, 0, 0, columns))
        words = rows.bfloat16().flatten().view(torch.float32)
        count = rows.shape[1] * rows.shape[2] // 2
        self._weight(words.view(rows.shape[0] // self.panel, self.panel, count).transpose(1, 2))

    def inner_depthwise(self, weight: Tensor) -> None:
        """[C, 1, 3, 3] as sets of pair rows [8][3 columns][C up to whole vectors] of words: the taps that the even and
        the odd row of a pair meet, in the order of TapSet in csrc/cpu/pairs.h."""
        channels = weight.shape[0]
        rows = weight.float().flatten(1).t().unflatten(0, (3, 3))
        rows = nn.functional.pad(rows, (0, _round_up(channels, _VECTOR) - channels, 0, 0, 0, 1))
        # the fourth row is zero: no tap
        even_and_odd = [(3, 0), (1, 2), (0, 1), (2, 3), (0, 3), (1, 3), (3, 1), (3, 2)]
        sets = torch.stack([torch.stack((rows[even], rows[odd]), -1) for even, odd in even_and_odd])
        self._weight(sets.bfloat16().view(torch.float32))


_WRITERS: dict[torch.dtype, type[_Writer]] = {torch.float32: _Writer, torch.bfloat16: _Bf16Writer}


@dataclass(eq=False)
class _Node:
    """What one call of a `Program` method asked for."""

    kind: str
    name: str
    inputs: tuple[int, ...]
    channels: int
    options: dict[str, Any]
    weights: dict[str, Any]


@dataclass(eq=False)
class _Layer:
    """One layer of the compiled program."""

    names: list[str]
    inputs: tuple[int, ...]
    channels: int  # of its result
    strategy = ""
    # what there are kernels for
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        raise NotImplementedError

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        raise NotImplementedError

    def macs(self, inputs: Sequence[Shape]) -> int:
        """Multiply-adds for one image."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        raise NotImplementedError

    def choose(self, inputs: Sequence[Shape]) -> None:
        """Settle what the weights are packed for, given the shapes of a typical size."""

    def strategy_for(self, inputs: Sequence[Shape]) -> str:
        """How the kernel goes about inputs of these shapes."""
        return self.strategy

    def floats(self, inputs: Sequence[Shape]) -> int:
        """Read and written at least: inputs, result and weights once each."""
        maps = sum(math.prod(shape) for shape in (*inputs, self.shape(inputs)))
        return maps + sum(weight.numel() for weight in self.weights())


@dataclass(eq=False)
class _Stem(_Layer):
    conv: _Node
    block: _Node
    strategy = "dense rows in a ring, then depthwise and projection"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        conv, block = self.conv, self.block
        hidden = conv.channels
        out.add(_STEM, inputs[0])
        _write_dense(conv, out)
        out.add(block.channels, _activation(block.options["activation"]))
        out.inner_depthwise(block.weights["depthwise_weight"])
        out.bias(block.weights["depthwise_bias"], hidden)
        out.matrix(block.weights["project_weight"])
        out.bias(block.weights["project_bias"], block.channels)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        (_, height, width), stride = inputs[0], self.conv.options["stride"]
        return self.block.channels, _convolved(height, stride), _convolved(width, stride)

    def macs(self, inputs: Sequence[Shape]) -> int:
        channels, height, width = self.shape(inputs)
        return height * width * self.conv.channels * (9 * inputs[0][0] + 9 + channels)

    def weights(self) -> list[Tensor]:
        return _tensors(self.conv.weights, self.block.weights)


@dataclass(eq=False)
class _StemPool(_Layer):
    conv: _Node
    pool: _Node
    strategy = "dense rows in a ring, then their maxima"

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        out.add(_STEM_POOL, inputs[0])
        _write_dense(self.conv, out)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        height, width = self._dense(inputs)
        return self.conv.channels, _convolved(height, 2), _convolved(width, 2)

    def _dense(self, inputs: Sequence[Shape]) -> tuple[int, int]:
        (_, height, width), stride = inputs[0], self.conv.options["stride"]
        return _convolved(height, stride), _convolved(width, stride)

    def macs(self, inputs: Sequence[Shape]) -> int:
        return math.prod(self._dense(inputs)) * self.conv.channels * 9 * inputs[0][0]

    def weights(self) -> list[Tensor]:
        return _tensors(self.conv.weights)


@dataclass(eq=False)
class _ShuffleUnit(_Layer):
    unit: _Node

    def _stores(self, inputs: Sequence[Shape]) -> bool:
        floats = math.prod(inputs[0][1:]) * _round_up(self.unit.options["bottleneck"], _VECTOR)
        return floats <= _MOST_STORED

    def strategy_for(self, inputs: Sequence[Shape]) -> str:
        return "compressed map, then the rest in tiles" if self._stores(inputs) else "compressed rows in a ring"

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        options, weights = self.unit.options, self.unit.weights
        channels, bottleneck, groups = options["in_channels"], options["bottleneck"], options["groups"]
        first_groups = options["first_groups"]
        out.add(_SHUFFLE_UNIT, inputs[0], channels, bottleneck, weights["expand_weight"].shape[0], first_groups, groups)
        out.add(options["stride"], options["dilation"], options["concat"], _MOST_STORED)
        out.grouped(weights["compress_weight"], weights["compress_bias"], first_groups)
        # the compressed channels stay in the order in which they are computed, the shuffle is in the weights' order
        order = torch.arange(bottleneck).unflatten(0, (-1, groups)).t().flatten()
        out.depthwise(weights["depthwise_weight"][order])
        out.bias(weights["depthwise_bias"][order], bottleneck)
        out.grouped(weights["expand_weight"], weights["expand_bias"], groups)
        if options["concat"]:
            out.depthwise(torch.full((channels, 1, 3, 3), 1 / 9))

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        (_, height, width), stride = inputs[0], self.unit.options["stride"]
        return self.unit.channels, _convolved(height, stride), _convolved(width, stride)

    def macs(self, inputs: Sequence[Shape]) -> int:
        weights = self.unit.weights
        _, height, width = self.shape(inputs)
        taps = weights["depthwise_weight"].numel() + weights["expand_weight"].numel()
        if self.unit.options["concat"]:
            taps += 9 * inputs[0][0]
        return math.prod(inputs[0][1:]) * weights["compress_weight"].numel() + height * width * taps

    def weights(self) -> list[Tensor]:
        return _tensors(self.unit.weights)


def _write_dense(conv: _Node, out: _Writer) -> None:
    """A dense 3x3 convolution of the network's input."""
    hidden, channels = conv.weights["weight"].shape[:2]
    out.add(channels, hidden, conv.options["stride"], _activation(conv.options["activation"]))
    out.matrix(conv.weights["weight"])
    out.bias(conv.weights["bias"], hidden)


@dataclass(eq=False)
class _InvertedResidual(_Layer):
    block: _Node
    strategy = "expanded rows in a ring"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        block, weights = self.block, self.block.weights
        expands = weights["expand_weight"] is not None
        hidden, channels = weights["depthwise_weight"].shape[0], block.options["in_channels"]
        out.add(_INVERTED_RESIDUAL, inputs[0], channels, expands, hidden, block.channels)
        out.add(block.options["stride"], block.options["dilation"], _activation(block.options["activation"]))
        out.add(block.options["residual"])
        if expands:
            out.matrix(weights["expand_weight"])
            out.bias(weights["expand_bias"], hidden)
        out.inner_depthwise(weights["depthwise_weight"])
        out.bias(weights["depthwise_bias"], hidden)
        out.matrix(weights["project_weight"])
        out.bias(weights["project_bias"], block.channels)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        (_, height, width), stride = inputs[0], self.block.options["stride"]
        return self.block.channels, _convolved(height, stride), _convolved(width, stride)

    def macs(self, inputs: Sequence[Shape]) -> int:
        channels, height, width = inputs[0]
        hidden = self.block.weights["depthwise_weight"].shape[0]
        out_channels, out_height, out_width = self.shape(inputs)
        expand = 0 if self.block.weights["expand_weight"] is None else height * width * channels * hidden
        return expand + out_height * out_width * hidden * (9 + out_channels)

    def weights(self) -> list[Tensor]:
        return _tensors(self.block.weights)


@dataclass(eq=False)
class _Pyramid(_Layer):
    last: _Node | None
    pyramid: _Node
    strategy = "input channels split over the threads, wide map by slices"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        weights, options = self.pyramid.weights, self.pyramid.options
        filters, channels = self.pyramid.channels, options["in_channels"]
        if self.last is None:
            out.add(_PYRAMID, inputs[0], channels, False, channels, filters, 0)
        else:
            last = self.last.weights["weight"]
            out.add(_PYRAMID, inputs[0], last.shape[1], True, channels, filters)
            out.add(_activation(self.last.options["activation"]))
            out.matrix(last)
            out.bias(self.last.weights["bias"], channels)
        direct, point, deep = weights["direct_weight"], weights["point"], weights["deep"]
        # the projection reads the 1x1 branch (where it is one of its own), the atrous branches and the pooled one
        slices = weights["project"][0].split(filters, 1)
        branches: list[tuple[int, Any, Any]] = []
        if direct is not None:
            branches.append((0, (None, direct, None), None))
        if point is not None:
            branches.append((0, (None, *point), None))
        for index, (rate, atrous) in enumerate(zip(options["rates"], weights["atrous"], strict=True)):
            branches.append((rate, atrous, deep[index] if deep else None))
        if len(branches) > _MOST_BRANCHES:
            raise Unplannable(f"{len(branches)} branches of the pyramid")
        out.add(len(branches))
        used = 0
        for index, (rate, (depthwise, pointwise, bias), second) in enumerate(branches):
            projected = not (index == 0 and direct is not None)
            out.add(rate, projected, second is not None)
            out.add(_activation("relu" if projected and second is None else None))
            out.matrix(pointwise)
            out.bias(bias, filters)
            if rate:
                out.depthwise(depthwise)
            if projected:
                out.matrix(slices[used])
                used += 1
            if second is not None:
                out.depthwise(second[0])
                out.matrix(second[1])
                out.bias(second[2], filters)
        out.matrix(weights["pool"][0])
        out.bias(weights["pool"][1], filters)
        out.matrix(slices[used])
        out.bias(weights["project"][1], filters)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return self.pyramid.channels, *inputs[0][1:]

    def macs(self, inputs: Sequence[Shape]) -> int:
        weights, filters, channels = self.pyramid.weights, self.pyramid.channels, self.pyramid.options["in_channels"]
        rates = len(self.pyramid.options["rates"])
        direct = sum(weights[name] is not None for name in ("direct_weight", "point"))
        each = channels * filters * (direct + rates) + 9 * channels * rates
        each += rates * filters * (filters + (9 + filters if weights["deep"] else 0))
        each += filters * filters if weights["point"] is not None else 0
        if self.last is not None:
            each += inputs[0][0] * channels
        return inputs[0][1] * inputs[0][2] * each + filters * (channels + filters)

    def weights(self) -> list[Tensor]:
        return _tensors(self.pyramid.weights, {} if self.last is None else self.last.weights)


@dataclass(eq=False)
class _Decoder(_Layer):
    upsample: _Node
    first: _Node
    second: _Node
    classifier: _Node
    # whether the first convolution's part for the resized map is done before resizing, a product for each of its taps
    lifts: bool = True
    dtypes = (torch.float32, torch.bfloat16)

    @property
    def strategy(self) -> str:  # type: ignore[override]
        rows = "convolved rows in rings"
        return f"first convolution before resizing, then {rows}" if self.lifts else f"resized and {rows}"

    def _split(self) -> tuple[int, int]:
        """Channels of the resized map, and those that the first convolution meets at full size."""
        resized = self.upsample.options["in_channels"]
        total = self.first.weights["depthwise_weight"].shape[0]
        return resized, total - resized if self.lifts else total

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        first, second = self.first, self.second
        resized, width = self._split()
        out.add(_DECODER, inputs[0], resized, self.upsample.options["concat"], inputs[1])
        out.add(first.channels, second.channels, self.classifier.channels)
        out.add(_activation(first.options["activation"]), _activation(second.options["activation"]), self.lifts)
        depthwise, pointwise = first.weights["depthwise_weight"], first.weights["pointwise_weight"]
        if self.lifts:
            taps = depthwise[:resized].double().flatten(1).t()
            out.matrix((pointwise[:, :resized, 0, 0].double() * taps[:, None]).flatten(0, 1))
            depthwise, pointwise = depthwise[resized:], pointwise[:, resized:]
        for weights, node, channels in (
            ((depthwise, pointwise), first, width),
            ((second.weights["depthwise_weight"], second.weights["pointwise_weight"]), second, first.channels),
        ):
            out.depthwise(weights[0], _round_up(channels, _VECTOR))
            out.matrix(weights[1])
            out.bias(node.weights["bias"], node.channels)
        out.matrix(self.classifier.weights["weight"])
        out.bias(self.classifier.weights["bias"], self.classifier.channels)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return self.classifier.channels, *inputs[1][1:]

    def macs(self, inputs: Sequence[Shape]) -> int:
        classes, height, width = self.shape(inputs)
        (resized, full), middle, last = self._split(), self.first.channels, self.second.channels
        each = 9 * (full + middle) + full * middle + middle * last + last * classes
        if not self.lifts:
            return height * width * each
        # along the height for each column of the small map, along the width for each pixel
        small_height, small_width = inputs[0][1:]
        resize = 6 * 3 * middle * height * small_width + 6 * middle * height * width
        return height * width * each + small_height * small_width * 9 * resized * middle + resize

    def weights(self) -> list[Tensor]:
        return _tensors(*(node.weights for node in (self.first, self.second, self.classifier)))

    def choose(self, inputs: Sequence[Shape]) -> None:
        """The strategy with fewer multiply-adds for inputs of these shapes."""
        costs = {}
        for self.lifts in (True, False):
            costs[self.lifts] = self.macs(inputs)
        self.lifts = costs[True] < costs[False]


# interpolation points of Winograd's method by the side of a tile of outputs, besides the one at infinity; the kernels
# have the same ones. 3/4 and 3/2 halve the error of the usual 1 and 2
_WINOGRAD_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
# multiply-adds of the transforms of one tile, for each channel of the input and of the output
_WINOGRAD_TRANSFORMS = {2: (32, 24), 4: (144, 130)}
# channels from which tiles of 4x4 are taken: with them everywhere the logits of Darknet19 have up to three times the
# error that plain sums give, most of it from the first layers, whose rounding all others amplify; with 2x2 there, 1.7
_EXACT_CHANNELS = 256
# floats of transformed weights that every block of tiles may read again
_SHARED_WEIGHTS = 1 << 21
# multiply-adds in the time in which a byte comes from outside the second level of cache, and what loading and storing
# the sums of a block costs in rows of the weights
_MACS_PER_BYTE = 4
_BLOCK_ROWS = 8


def _winograd_transform(output: int) -> Tensor:
    """[output + 2, 3] in float64: the values of a filter, as a polynomial, at the points, and its last coefficient."""
    points = _WINOGRAD_POINTS[output]
    rows = []
    for point in points:
        scale = math.prod(point - other for other in points if other != point)
        rows.append([1 / scale, point / scale, point**2 / scale])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


@dataclass(eq=False)
class _Convolution(_Layer):
    """A dense convolution, and the 2x2 max pool behind it."""

    conv: _Node
    pool: _Node | None
    # side of Winograd's tiles, or 0: plain products
    output: int = 0

    @property
    def strategy(self) -> str:  # type: ignore[override]
        if not self.output:
            return "products in place" if self.conv.options["kernel"] == 1 else "products of copied rows"
        way = "passes over all tiles" if self._in_passes() else "blocks of tiles"
        return f"Winograd F({self.output}x{self.output}, 3x3), {way}"

    def _in_passes(self) -> bool:
        """Whether the transformed weights are too large to be read for each block of tiles."""
        return self._packed_floats() > _SHARED_WEIGHTS

    def _packed_floats(self) -> int:
        weight = self.conv.weights["weight"]
        return weight.shape[0] * weight.shape[1] * ((self.output + 2) ** 2 if self.output else weight[0, 0].numel())

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        options, weight = self.conv.options, self.conv.weights["weight"]
        out_channels, channels = weight.shape[:2]
        pools, activation = self.pool is not None, _sloped_activation(options)
        if self.output:
            out.add(_WINOGRAD, channels, inputs[0], out_channels, options["padding"], options["dilation"])
            out.add(self.output // 2, pools, self._in_passes(), *activation)
            out.winograd(weight, self.output)
        else:
            out.add(_CONVOLUTION, inputs[0], channels, out_channels, options["kernel"], options["stride"])
            out.add(options["padding"], options["dilation"], pools, *activation)
            out.matrix(weight)
        out.bias(self.conv.weights["bias"], out_channels)

    def _convolved(self, inputs: Sequence[Shape]) -> tuple[int, int]:
        """Height and width before the pool."""
        options = self.conv.options
        taps = options["dilation"] * (options["kernel"] - 1) + 1
        height, width = ((size + 2 * options["padding"] - taps) // options["stride"] + 1 for size in inputs[0][1:])
        # a last odd row or column is not computed
        return (height, width) if self.pool is None else (height // 2 * 2, width // 2 * 2)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        height, width = self._convolved(inputs)
        step = 1 if self.pool is None else 2
        return self.channels, height // step, width // step

    def _tiles(self, inputs: Sequence[Shape]) -> int:
        tiles = 1
        for size in self._convolved(inputs):
            # each of the interleaved maps of a dilated convolution has tiles of its own
            dilation = self.conv.options["dilation"]
            longest = -(-size // dilation)
            tiles *= min(dilation, size) * -(-longest // self.output)
        return tiles

    def macs(self, inputs: Sequence[Shape]) -> int:
        if not self.output:
            return math.prod(self._convolved(inputs)) * self.conv.weights["weight"].numel()
        channels = inputs[0][0]
        of_input, of_output = _WINOGRAD_TRANSFORMS[self.output]
        products = (self.output + 2) ** 2 * channels * self.channels
        return self._tiles(inputs) * (products + of_input * channels + of_output * self.channels)

    def floats(self, inputs: Sequence[Shape]) -> int:
        maps = math.prod(inputs[0]) + math.prod(self.shape(inputs))
        if self.output and self._in_passes():
            maps += 2 * (self.output + 2) ** 2 * self._tiles(inputs) * (inputs[0][0] + self.channels)
        return maps + self._packed_floats() + self.channels

    def weights(self) -> list[Tensor]:
        return _tensors(self.conv.weights)

    def choose(self, inputs: Sequence[Shape]) -> None:
        """The way that is predicted to take the least time for inputs of these shapes."""
        options = self.conv.options
        # the network's own input has strides, which only the copied rows know
        if options["kernel"] != 3 or options["stride"] != 1 or self.conv.inputs == (0,):
            return
        channels, costs = inputs[0][0], {}
        for self.output in (0, 2, 4) if channels >= _EXACT_CHANNELS else (0, 2):
            rows = channels if self.output else 9 * channels
            macs = self.macs(inputs) * (rows + _BLOCK_ROWS) / rows
            costs[self.output] = macs + _MACS_PER_BYTE * 4 * self.floats(inputs)
        self.output = min(costs, key=costs.__getitem__)


@dataclass(eq=False)
class _MaxPool(_Layer):
    pool: _Node
    strategy = "maxima of 2x2"

    def write(self, out: _Writer, inputs: Sequence[int]) -> None:
        out.add(_MAX_POOL, self.channels, inputs[0])

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = inputs[0]
        return channels, height // 2, width // 2

    def macs(self, inputs: Sequence[Shape]) -> int:
        return 0

    def weights(self) -> list[Tensor]:
        return []


def _tensors(*groups: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    for group in groups:
        collect(list(group.values()))
    return found


class Program:
    """The network as its modules tell it. Values are numbers: 0 is the network's input."""

    def __init__(self, in_channels: int) -> None:
        self._channels = [in_channels]
        self._nodes: list[_Node] = []
        self._scope: list[str] = []

    def channels(self, value: int) -> int:
        return self._channels[value]

    def run(self, module: nn.Module, name: str, *inputs: int) -> int:
        """The value that `module.lower` gives for `inputs`; `name` is what reports call it."""
        lower = getattr(module, "lower", None)
        if lower is None:
            raise Unplannable(f"{name}: {type(module).__name__} has no lower()")
        self._scope.append(name)
        value = lower(self, *inputs)
        self._scope.pop()
        return value

    def _add(self, kind: str, inputs: tuple[int, ...], channels: int, options: Any, weights: Any) -> int:
        options["in_channels"] = self._channels[inputs[0]]
        name = ".".join(self._scope) or kind
        self._nodes.append(_Node(kind, name, inputs, channels, options, weights))
        self._channels.append(channels)
        return len(self._channels) - 1

    def convolution(
        self,
        x: int,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> int:
        """conv2d with [C', C / groups, k, k] and an activation."""
        options = {
            "stride": _one(stride),
            "padding": _one(padding),
            "dilation": _one(dilation),
            "kernel": _one(weight.shape[2:]),
            "groups": groups,
            "activation": activation,
            "negative_slope": negative_slope,
        }
        return self._add("convolution", (x,), weight.shape[0], options, {"weight": weight, "bias": bias})

    def separable(
        self,
        x: int,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        activation: str | None,
        negative_slope: float = 0.01,
    ) -> int:
        """As functional.separable_conv2d."""
        options = {
            "stride": _one(stride),
            "padding": _one(padding),
            "dilation": _one(dilation),
            "kernel": _one(depthwise_weight.shape[2:]),
            "activation": activation,
            "negative_slope": negative_slope,
        }
        weights = {"depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight, "bias": bias}
        return self._add("separable", (x,), pointwise_weight.shape[0], options, weights)

    def inverted_residual(
        self,
        x: int,
        weights: dict[str, Tensor | None],
        *,
        stride: Sequence[int],
        dilation: Sequence[int],
        residual: bool,
        activation: str = "relu6",
    ) -> int:
        """As functional.inverted_residual, `weights` by the names of its arguments."""
        project = weights["project_weight"]
        assert project is not None
        options = {
            "stride": _one(stride),
            "dilation": _one(dilation),
            "residual": residual,
            "activation": activation,
            "kernel": _one(weights["depthwise_weight"].shape[2:]),  # type: ignore[union-attr]
        }
        return self._add("inverted_residual", (x,), project.shape[0], options, dict(weights))

    def max_pool(self, x: int, *, kernel: Any, stride: Any, padding: Any) -> int:
        """As max_pool2d."""
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        return self._add("max_pool", (x,), self._channels[x], options, {})

    def shuffle_unit(
        self,
        x: int,
        weights: dict[str, Tensor | None],
        *,
        groups: int,
        stride: Sequence[int],
        dilation: Sequence[int],
        concat: bool,
    ) -> int:
        """As functional.shuffle_unit, `weights` by the names of its arguments."""
        compress, expand = weights["compress_weight"], weights["expand_weight"]
        assert compress is not None and expand is not None
        options = {
            "bottleneck": compress.shape[0],
            "groups": groups,
            "first_groups": self._channels[x] // compress.shape[1],
            "stride": _one(stride),
            "dilation": _one(dilation),
            "concat": concat,
        }
        channels = expand.shape[0] + (self._channels[x] if concat else 0)
        return self._add("shuffle_unit", (x,), channels, options, dict(weights))

    def daspp(
        self,
        x: int,
        atrous: Sequence[tuple[Tensor, ...]],
        pool: tuple[Tensor, Tensor],
        project: tuple[Tensor, Tensor],
        *,
        rates: Sequence[int],
        deep: Sequence[tuple[Tensor, ...]],
        direct_weight: Tensor | None,
        point: tuple[Tensor, Tensor] | None,
    ) -> int:
        """As functional.daspp."""
        weights = {
            "direct_weight": direct_weight,
            "point": point,
            "atrous": list(atrous),
            "deep": list(deep),
            "pool": pool,
            "project": project,
        }
        return self._add("daspp", (x,), project[0].shape[0], {"rates": tuple(rates)}, weights)

    def upsample(self, x: int, like: int, *, concat: bool, align_corners: bool = True) -> int:
        """x resized bilinearly to the size of `like`; with `concat`, followed by `like` along the channels."""
        options = {"concat": concat, "align_corners": align_corners}
        channels = self._channels[x] + (self._channels[like] if concat else 0)
        return self._add("upsample", (x, like), channels, options, {})

    def _users(self) -> dict[int, list[_Node]]:
        users: dict[int, list[_Node]] = {}
        for node in self._nodes:
            for value in node.inputs:
                users.setdefault(value, []).append(node)
        return users

    def layers(self) -> tuple[list[_Layer], list[int]]:
        """The network as layers of the compiled op, and the value each one makes."""
        users = self._users()

        def only(value: int, kind: str) -> _Node | None:
            """The node of `kind` that alone reads `value`."""
            found = users.get(value, [])
            return found[0] if len(found) == 1 and found[0].kind == kind else None

        layers: list[_Layer] = []
        values: list[int] = []
        done: set[int] = set()
        for index, node in enumerate(self._nodes):
            value = index + 1
            if value in done:
                continue
            layer: _Layer | None = None
            options = node.options
            if node.kind == "inverted_residual" and options["kernel"] == 3:
                layer = _InvertedResidual([node.name], node.inputs, node.channels, node)
            elif node.kind == "daspp":
                layer = _Pyramid([node.name], node.inputs, node.channels, None, node)
            elif node.kind == "shuffle_unit":
                layer = _ShuffleUnit([node.name], node.inputs, node.channels, node)
            elif node.kind == "convolution" and options["groups"] == 1:
                block, pyramid = only(value, "inverted_residual"), only(value, "daspp")
                pool = only(value, "max_pool")
                if block is not None and node.inputs == (0,) and _is_stem(node, block):
                    layer = _Stem([node.name, block.name], node.inputs, block.channels, node, block)
                    value = self._nodes.index(block) + 1
                elif pyramid is not None and _is_last(node):
                    layer = _Pyramid([node.name, pyramid.name], node.inputs, pyramid.channels, node, pyramid)
                    value = self._nodes.index(pyramid) + 1
                elif pool is not None and node.inputs == (0,) and _is_stem_pool(node, pool):
                    layer = _StemPool([node.name, pool.name], node.inputs, node.channels, node, pool)
                    value = self._nodes.index(pool) + 1
                elif options["kernel"] <= _MOST_TAPS:
                    if pool is None or not _is_half(pool) or not _is_fused_pool(node):
                        pool = None
                    names = [node.name] if pool is None else [node.name, pool.name]
                    layer = _Convolution(names, node.inputs, node.channels, node, pool)
                    value = value if pool is None else self._nodes.index(pool) + 1
            elif node.kind == "separable" and options["kernel"] == 1 and node.inputs != (0,):
                layer = _Convolution([node.name], node.inputs, node.channels, _merged(node), None)
            elif node.kind == "max_pool" and _is_half(node) and node.inputs != (0,):
                layer = _MaxPool([node.name], node.inputs, node.channels, node)
            elif node.kind == "upsample" and options["align_corners"]:
                first = only(value, "separable")
                second = None if first is None else only(self._nodes.index(first) + 1, "separable")
                head = None if second is None else only(self._nodes.index(second) + 1, "convolution")
                if first and second and head and _is_decoder(first, second, head):
                    names = [node.name, first.name, second.name, head.name]
                    layer = _Decoder(names, node.inputs, head.channels, node, first, second, head)
                    value = self._nodes.index(head) + 1
            if layer is None:
                raise Unplannable(f"{node.name}: no layer of the plan covers this {node.kind}")
            done.update(range(index + 1, value + 1))
            layers.append(layer)
            values.append(value)
        return layers, values


def _one(pair: Sequence[int]) -> int:
    if len(set(pair)) != 1:
        raise Unplannable(f"different values for height and width: {tuple(pair)}")
    return int(pair[0])


def _same3(node: _Node, stride: int = 1) -> bool:
    """A 3x3 convolution that keeps its input's size."""
    wanted = {"kernel": 3, "stride": stride, "padding": 1, "dilation": 1}
    return all(node.options[name] == value for name, value in wanted.items())


def _is_stem_pool(conv: _Node, pool: _Node) -> bool:
    pooled = all(pool.options[name] == value for name, value in {"kernel": 3, "stride": 2, "padding": 1}.items())
    return pooled and _same3(conv, conv.options["stride"])


def _is_last(conv: _Node) -> bool:
    """A convolution that a pyramid computes by slices."""
    wanted = {"kernel": 1, "stride": 1, "padding": 0}
    plain = conv.options["activation"] != "leaky_relu" and conv.inputs != (0,)
    return plain and all(conv.options[name] == value for name, value in wanted.items())


def _is_half(pool: _Node) -> bool:
    return all(pool.options[name] == value for name, value in {"kernel": 2, "stride": 2, "padding": 0}.items())


def _is_fused_pool(conv: _Node) -> bool:
    """Whether a pool may be part of the convolution: maxima before the activation need one that does not fall."""
    return conv.options["dilation"] == 1 and conv.options["negative_slope"] >= 0


def _merged(node: _Node) -> _Node:
    """A 1x1 separable convolution as a dense one."""
    weights = node.weights
    scale = weights["depthwise_weight"].double().view(1, -1, 1, 1)
    dense = (weights["pointwise_weight"].double() * scale).float()
    return _Node(
        "convolution", node.name, node.inputs, node.channels, node.options, {"weight": dense, "bias": weights["bias"]}
    )


def _is_stem(conv: _Node, block: _Node) -> bool:
    plain = block.weights["expand_weight"] is None and not block.options["residual"]
    same = all(block.options[name] == value for name, value in {"kernel": 3, "stride": 1, "dilation": 1}.items())
    return plain and same and _same3(conv, conv.options["stride"])


def _is_decoder(first: _Node, second: _Node, head: _Node) -> bool:
    pointwise = head.options["kernel"] == 1 and head.options["stride"] == 1 and head.options["groups"] == 1
    return _same3(first) and _same3(second) and pointwise and head.options["activation"] is None


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


@dataclass(frozen=True)
class Plan:
    """A compiled program and its packed weights. Holds no state: any number of threads may call it at once."""

    packed: Tensor
    program: Tensor
    in_channels: int
    dtype: torch.dtype
    layers: tuple[_Layer, ...] = field(repr=False)
    inputs: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def compile(cls, program: Program, dtype: torch.dtype = torch.float32) -> Plan:
        """Raises Unplannable where a part of the network has no layer, or none of this dtype."""
        layers, values = program.layers()
        for layer in layers:
            if dtype not in layer.dtypes:
                raise Unplannable(f"{' + '.join(layer.names)}: no kernel for {dtype}")
        number = {0: 0} | {value: index + 1 for index, value in enumerate(values)}
        panel = torch.ops.liteseg_cpu.panel()
        out = _WRITERS[dtype](panel)
        out.add(_VERSIONS[dtype], panel, len(layers))
        inputs = []
        shapes: list[Shape] = [(program.channels(0), *_TYPICAL_SIZE)]
        for layer in layers:
            inputs.append(tuple(number[value] for value in layer.inputs))
            given = [shapes[i] for i in inputs[-1]]
            layer.choose(given)
            layer.write(out, inputs[-1])
            shapes.append(layer.shape(given))
        words = torch.tensor(out.words, dtype=torch.int64)
        return cls(out.packed(), words, program.channels(0), dtype, tuple(layers), tuple(inputs))

    @property
    def classes(self) -> int:
        """Channels of the last layer's output."""
        return self.layers[-1].channels

    def logits(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the last layer's output [N, K, h, w] in the plan's dtype and x's memory format."""
        return torch.ops.liteseg_cpu.run_plan(x.to(self.dtype), self.packed, self.program, [])

    def labels(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """[N, C, H, W] -> uint8 [N, *size]: arg max of logits resized to `size` (bilinear, aligned corners). The logits
        are float32 in a bfloat16 plan too. At most 256 classes."""
        return torch.ops.liteseg_cpu.run_plan(x.to(self.dtype), self.packed, self.program, list(size))

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
                    self.dtype.itemsize * layer.floats(given),
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
        if len(dtypes) != 1 or dtypes.isdisjoint(_WRITERS) or any(t.device.type != "cpu" for t in tensors):
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
        if type(x) is not Tensor or x.device.type != "cpu" or x.dtype not in _WRITERS:
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
