"""The layers that the compiled op knows: what each replaces, costs, and writes into the program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .contract import constant
from .packing import Unplannable, Writer, activation_word, float_word, sloped_activation_words, whole_vectors

Shape = tuple[int, int, int]  # channels, height, width


class Grid(Protocol):
    """How bytes stand for numbers: (byte - zero) * scale."""

    @property
    def scale(self) -> float: ...
    @property
    def zero(self) -> int: ...


# floats of the largest compressed map of a shuffle unit that is stored
_MOST_STORED = 1 << 18


def _convolved(size: int, stride: int) -> int:
    """Length of one side after a 3x3 convolution with padding = dilation."""
    return (size - 1) // stride + 1


@dataclass(eq=False)
class Node:
    """What one call of a `Program` method asked for."""

    kind: str
    name: str
    inputs: tuple[int, ...]
    channels: int
    options: dict[str, Any]
    weights: dict[str, Any]


@dataclass(eq=False)
class Layer:
    """One layer of the compiled program."""

    names: list[str]
    inputs: tuple[int, ...]
    channels: int  # of its result
    strategy = ""
    # what there are kernels for
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        raise NotImplementedError

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        raise NotImplementedError

    def macs(self, inputs: Sequence[Shape]) -> int:
        """Multiply-adds for one image."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        raise NotImplementedError

    def grids(self) -> tuple[Grid | None, Grid | None]:
        """Of the bytes that it reads and of those that it makes; None for numbers in the plan's dtype."""
        return None, None

    def choose(self, inputs: Sequence[Shape]) -> None:
        """Settle what the weights are packed for, given the shapes of a typical size."""

    def strategy_for(self, inputs: Sequence[Shape]) -> str:
        """How the kernel goes about inputs of these shapes."""
        return self.strategy

    def forms(self, made: Sequence[Grid | None]) -> tuple[Sequence[Grid | None], Grid | None]:
        """Grids of the bytes that it wants each of its inputs as, given how they were made, and of those it makes."""
        reads, makes = self.grids()
        return [reads] * len(made), makes

    def floats(self, inputs: Sequence[Shape]) -> int:
        """Read and written at least: inputs, result and weights once each."""
        maps = sum(math.prod(shape) for shape in (*inputs, self.shape(inputs)))
        return maps + sum(weight.numel() for weight in self.weights())

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        """The same in bytes, for numbers of `itemsize`."""
        return itemsize * self.floats(inputs)


@dataclass(eq=False)
class Stem(Layer):
    conv: Node
    block: Node
    strategy = "dense rows in a ring, then depthwise and projection"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        conv, block = self.conv, self.block
        hidden = conv.channels
        out.layer("stem", inputs[0])
        _write_dense(conv, out)
        out.add(block.channels, activation_word(block.options["activation"]))
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
class StemPool(Layer):
    conv: Node
    pool: Node
    strategy = "dense rows in a ring, then their maxima"

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        out.layer("stem_pool", inputs[0])
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
class ShuffleUnit(Layer):
    unit: Node

    def _stores(self, inputs: Sequence[Shape]) -> bool:
        floats = math.prod(inputs[0][1:]) * whole_vectors(self.unit.options["bottleneck"])
        return floats <= _MOST_STORED

    def strategy_for(self, inputs: Sequence[Shape]) -> str:
        return "compressed map, then the rest in tiles" if self._stores(inputs) else "compressed rows in a ring"

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        options, weights = self.unit.options, self.unit.weights
        channels, bottleneck, groups = options["in_channels"], options["bottleneck"], options["groups"]
        first_groups = options["first_groups"]
        out.layer(
            "shuffle_unit",
            inputs[0],
            channels,
            bottleneck,
            weights["expand_weight"].shape[0],
            first_groups,
            groups,
        )
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


def _write_dense(conv: Node, out: Writer) -> None:
    """A dense 3x3 convolution of the network's input."""
    hidden, channels = conv.weights["weight"].shape[:2]
    out.add(channels, hidden, conv.options["stride"], activation_word(conv.options["activation"]))
    out.matrix(conv.weights["weight"])
    out.bias(conv.weights["bias"], hidden)


@dataclass(eq=False)
class InvertedResidual(Layer):
    block: Node
    strategy = "expanded rows in a ring"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        block, weights = self.block, self.block.weights
        expands = weights["expand_weight"] is not None
        hidden, channels = weights["depthwise_weight"].shape[0], block.options["in_channels"]
        out.layer("inverted_residual", inputs[0], channels, expands, hidden, block.channels)
        out.add(block.options["stride"], block.options["dilation"], activation_word(block.options["activation"]))
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
class Int8InvertedResidual(Layer):
    """The same in bytes."""

    block: Node
    strategy = "int8, expanded rows in a ring"
    dtypes = (torch.float32, torch.bfloat16)

    def grids(self) -> tuple[Grid | None, Grid | None]:
        reads, makes = self.block.options["grids"]
        return reads, makes

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        block, weights, (reads, makes) = self.block, self.block.weights, self.block.options["grids"]
        hidden, channels = weights["expand_weight"].shape[:2]
        residual_scale = block.options["residual_scale"]
        out.layer("int8_inverted_residual", channels, *grid_words(reads), inputs[0], hidden, block.channels)
        out.add(*grid_words(makes), block.options["stride"], block.options["dilation"])
        out.add(residual_scale is not None, float_word(residual_scale or 0.0))
        _write_byte_matrix(_conv(weights, "expand"), reads.zero, out)
        out.byte_depthwise(weights["depthwise_weight"].flatten(1))
        out.lanes("lane_integers", weights["depthwise_bias"])
        out.lanes("lane_vector", weights["depthwise_scale"])
        _write_byte_matrix(_conv(weights, "project"), 0, out)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        (_, height, width), stride = inputs[0], self.block.options["stride"]
        return self.channels, _convolved(height, stride), _convolved(width, stride)

    def macs(self, inputs: Sequence[Shape]) -> int:
        channels, height, width = inputs[0]
        hidden = self.block.weights["depthwise_weight"].shape[0]
        out_channels, out_height, out_width = self.shape(inputs)
        return height * width * channels * hidden + out_height * out_width * hidden * (9 + out_channels)

    def weights(self) -> list[Tensor]:
        return _tensors(self.block.weights)

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        return _bytes_of(self, inputs)


@dataclass(eq=False)
class Int8Pointwise(Layer):
    """A 1x1 convolution of bytes."""

    conv: Node
    strategy = "int8, products in place"
    dtypes = (torch.float32, torch.bfloat16)

    def grids(self) -> tuple[Grid | None, Grid | None]:
        reads, makes = self.conv.options["grids"]
        return reads, makes

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        weights, (reads, makes) = self.conv.weights, self.conv.options["grids"]
        out.layer("int8_pointwise", weights["weight"].shape[1], *grid_words(reads), inputs[0])
        out.add(self.channels, *grid_words(makes))
        _write_byte_matrix((weights["weight"], weights["bias"], weights["scale"]), reads.zero, out)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return self.channels, *inputs[0][1:]

    def macs(self, inputs: Sequence[Shape]) -> int:
        return math.prod(inputs[0]) * self.channels

    def weights(self) -> list[Tensor]:
        return _tensors(self.conv.weights)

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        return _bytes_of(self, inputs)


@dataclass(eq=False)
class Int8Daspp(Layer):
    """The pyramid of bytes."""

    daspp: Node
    strategy = "int8, input channels split over the threads; float32 behind its sums"
    dtypes = (torch.float32, torch.bfloat16)

    def grids(self) -> tuple[Grid | None, Grid | None]:
        reads, makes = self.daspp.options["grids"]
        return reads, makes

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        weights, (reads, makes) = self.daspp.weights, self.daspp.options["grids"]
        direct, branches = weights["direct"], weights["branches"]
        pool_weight, pool_bias, project_weight, project_bias = weights["floats"]
        filters = self.channels
        if len(branches) + 1 > constant("most.branches"):
            raise Unplannable(f"{len(branches) + 1} branches of the pyramid")
        out.layer("int8_daspp", direct[0].shape[1], *grid_words(reads), inputs[0], filters, *grid_words(makes))
        out.add(len(branches) + 1)
        out.add(0, False)
        _write_byte_matrix(direct, reads.zero, out)
        slices = project_weight.flatten(1).split(filters, 1)
        for index, branch in enumerate(branches):
            out.add(branch.rate, True)
            _write_byte_matrix(branch.pointwise, branch.zero, out)
            out.byte_depthwise(branch.depthwise[0].flatten(1))
            out.lanes("lane_integers", branch.depthwise[1])
            out.lanes("lane_vector", branch.depthwise[2])
            out.float_matrix(slices[index])
            out.depthwise(branch.deep_depthwise)
            out.float_matrix(branch.deep_pointwise.flatten(1))
            out.bias(branch.deep_bias, filters)
        out.float_matrix(pool_weight.flatten(1))
        out.bias(pool_bias, filters)
        out.float_matrix(slices[-1])
        out.bias(project_bias, filters)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return self.channels, *inputs[0][1:]

    def macs(self, inputs: Sequence[Shape]) -> int:
        (channels, height, width), filters, rates = inputs[0], self.channels, len(self.daspp.weights["branches"])
        each = channels * filters * (1 + rates) + 9 * channels * rates + rates * filters * (2 * filters + 9)
        return height * width * each + filters * (channels + filters)

    def weights(self) -> list[Tensor]:
        return _tensors(self.daspp.weights)

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        return _bytes_of(self, inputs)


@dataclass(eq=False)
class _Convert(Layer):
    grid: Grid
    dtypes = (torch.float32, torch.bfloat16)

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return inputs[0]

    def macs(self, inputs: Sequence[Shape]) -> int:
        return 0

    def weights(self) -> list[Tensor]:
        return []

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        return (1 + itemsize) * math.prod(inputs[0])


@dataclass(eq=False)
class Quantise(_Convert):
    """Numbers to bytes."""

    strategy = "to int8"

    def grids(self) -> tuple[Grid | None, Grid | None]:
        return None, self.grid

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        out.layer("quantise", self.channels, inputs[0], *grid_words(self.grid))


@dataclass(eq=False)
class Dequantise(_Convert):
    """And back."""

    strategy = "from int8"

    def grids(self) -> tuple[Grid | None, Grid | None]:
        return self.grid, None

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        out.layer("dequantise", self.channels, *grid_words(self.grid), inputs[0])


@dataclass(eq=False)
class Daspp(Layer):
    last: Node | None
    daspp: Node
    strategy = "input channels split over the threads, wide map by slices"
    dtypes = (torch.float32, torch.bfloat16)

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        weights, options = self.daspp.weights, self.daspp.options
        filters, channels = self.daspp.channels, options["in_channels"]
        if self.last is None:
            out.layer("daspp", inputs[0], channels, False, channels, filters, 0)
        else:
            last = self.last.weights["weight"]
            out.layer("daspp", inputs[0], last.shape[1], True, channels, filters)
            out.add(activation_word(self.last.options["activation"]))
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
        if len(branches) > constant("most.branches"):
            raise Unplannable(f"{len(branches)} branches of the pyramid")
        out.add(len(branches))
        used = 0
        for index, (rate, (depthwise, pointwise, bias), second) in enumerate(branches):
            projected = not (index == 0 and direct is not None)
            out.add(rate, projected, second is not None)
            out.add(activation_word("relu" if projected and second is None else None))
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
        return self.daspp.channels, *inputs[0][1:]

    def macs(self, inputs: Sequence[Shape]) -> int:
        weights, filters, channels = self.daspp.weights, self.daspp.channels, self.daspp.options["in_channels"]
        rates = len(self.daspp.options["rates"])
        direct = sum(weights[name] is not None for name in ("direct_weight", "point"))
        each = channels * filters * (direct + rates) + 9 * channels * rates
        each += rates * filters * (filters + (9 + filters if weights["deep"] else 0))
        each += filters * filters if weights["point"] is not None else 0
        if self.last is not None:
            each += inputs[0][0] * channels
        return inputs[0][1] * inputs[0][2] * each + filters * (channels + filters)

    def weights(self) -> list[Tensor]:
        return _tensors(self.daspp.weights, {} if self.last is None else self.last.weights)


@dataclass(eq=False)
class Decoder(Layer):
    upsample: Node
    first: Node
    second: Node
    classifier: Node
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

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        first, second = self.first, self.second
        resized, width = self._split()
        out.layer("decoder", inputs[0], resized, self.upsample.options["concat"], inputs[1])
        out.add(first.channels, second.channels, self.classifier.channels)
        out.add(activation_word(first.options["activation"]), activation_word(second.options["activation"]), self.lifts)
        depthwise, pointwise = first.weights["depthwise_weight"], first.weights["pointwise_weight"]
        if self.lifts:
            out.matrix(_lifted(depthwise[:resized], pointwise[:, :resized]))
            depthwise, pointwise = depthwise[resized:], pointwise[:, resized:]
        for weights, node, channels in (
            ((depthwise, pointwise), first, width),
            ((second.weights["depthwise_weight"], second.weights["pointwise_weight"]), second, first.channels),
        ):
            out.depthwise(weights[0], whole_vectors(channels))
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


@dataclass(eq=False)
class Int8Decoder(Decoder):
    """The decoder with its second convolution in bytes."""

    read: Sequence[Grid] = ()

    @property
    def strategy(self) -> str:  # type: ignore[override]
        return f"int8 in the second convolution, float32 in the others; {super().strategy}"

    def forms(self, made: Sequence[Grid | None]) -> tuple[Sequence[Grid | None], Grid | None]:
        self.read = [grid for grid in made if grid is not None]
        if len(self.read) < len(made):
            raise Unplannable("a decoder in int8 behind layers that are not")
        return list(made), None

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        first, second = self.first, self.second
        resized, width = self._split()
        depthwise, pointwise = first.weights["depthwise_weight"], first.weights["pointwise_weight"]
        out.layer("int8_decoder", resized, *grid_words(self.read[0]), inputs[0])
        out.add(len(depthwise) - resized, *grid_words(self.read[1]), inputs[1])
        out.add(first.channels, second.channels, self.classifier.channels)
        out.add(activation_word(first.options["activation"]), self.lifts)
        if self.lifts:
            out.float_matrix(_lifted(depthwise[:resized], pointwise[:, :resized]))
            depthwise, pointwise = depthwise[resized:], pointwise[:, resized:]
        out.depthwise(depthwise, whole_vectors(width))
        out.float_matrix(pointwise.flatten(1))
        out.bias(first.weights["bias"], first.channels)
        middle, last = second.options["grids"]
        weight, start, scale = second.weights["depthwise"]
        out.add(*grid_words(middle))
        out.byte_depthwise(weight.flatten(1))
        out.lanes("lane_integers", start)
        out.lanes("lane_vector", scale)
        _write_byte_matrix(second.weights["pointwise"], second.options["zero"], out)
        # the classifier reads bytes as they are
        out.float_matrix(self.classifier.weights["weight"].flatten(1).float() * last.scale)
        out.bias(self.classifier.weights["bias"], self.classifier.channels)

    def bytes(self, inputs: Sequence[Shape], itemsize: int) -> int:
        maps = sum(math.prod(shape) for shape in inputs) + 4 * math.prod(self.shape(inputs))
        return maps + sum(weight.nbytes for weight in self.weights())


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


@dataclass(eq=False)
class Convolution(Layer):
    """A dense convolution, and the 2x2 max pool behind it."""

    conv: Node
    pool: Node | None
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

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        options, weight = self.conv.options, self.conv.weights["weight"]
        out_channels, channels = weight.shape[:2]
        pools, activation = self.pool is not None, sloped_activation_words(options)
        if self.output:
            out.layer("winograd", channels, inputs[0], out_channels, options["padding"], options["dilation"])
            out.add(self.output // 2, pools, self._in_passes(), *activation)
            out.winograd(weight, self.output)
        else:
            out.layer("convolution", inputs[0], channels, out_channels, options["kernel"], options["stride"])
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
class MaxPool(Layer):
    pool: Node
    strategy = "maxima of 2x2"

    def write(self, out: Writer, inputs: Sequence[int]) -> None:
        out.layer("max_pool", self.channels, inputs[0])

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = inputs[0]
        return channels, height // 2, width // 2

    def macs(self, inputs: Sequence[Shape]) -> int:
        return 0

    def weights(self) -> list[Tensor]:
        return []


def _conv(weights: dict[str, Any], name: str) -> tuple[Tensor, Tensor, Tensor]:
    return weights[f"{name}_weight"], weights[f"{name}_bias"], weights[f"{name}_scale"]


def _lifted(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """[9 * F, C]: a product for each tap of a separable convolution of [C, 1, 3, 3] and [F, C, 1, 1]."""
    taps = depthwise.double().flatten(1).t()
    return (pointwise[:, :, 0, 0].double() * taps[:, None]).flatten(0, 1)


def _write_byte_matrix(parts: tuple[Tensor, Tensor, Tensor], zero: int, out: Writer) -> None:
    """int8 [N, K, 1, 1] with int32 [N] and float [N], for an input of this zero point."""
    weight, bias, scale = parts
    rows = weight.flatten(1)
    # what the zero point adds to each sum
    start = bias.long() - zero * rows.long().sum(1)
    if bool((start.abs() > 1 << 24).any()):
        raise Unplannable("sums of bytes whose start is beyond 2^24")
    out.byte_matrix(rows)
    out.integers(start)
    out.bias(scale, len(rows))


def _bytes_of(layer: Layer, inputs: Sequence[Shape]) -> int:
    """Read and written at least by a layer of bytes."""
    maps = sum(math.prod(shape) for shape in (*inputs, layer.shape(inputs)))
    return maps + sum(weight.nbytes for weight in layer.weights())


def grid_words(grid: Grid) -> tuple[int, int]:
    return float_word(grid.scale), grid.zero


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
