"""What a network's modules say of themselves, and which layers of the compiled op cover it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import intact
from .contract import constant
from .layers import (
    Convolution,
    Daspp,
    Decoder,
    Dequantise,
    Grid,
    Int8Daspp,
    Int8Decoder,
    Int8InvertedResidual,
    Int8Pointwise,
    InvertedResidual,
    Layer,
    MaxPool,
    Node,
    Quantise,
    ShuffleUnit,
    Stem,
    StemPool,
)
from .packing import Unplannable


class Program:
    """The network as its modules tell it by their `lower`, before a `Plan` is made of it. (In C++ the class of
    this name reads the words of a finished plan.) Values are numbers: 0 is the network's input."""

    def __init__(self, in_channels: int) -> None:
        self._channels = [in_channels]
        self._nodes: list[Node] = []
        self._scope: list[str] = []

    def channels(self, value: int) -> int:
        return self._channels[value]

    def run(self, module: nn.Module, name: str, *inputs: int) -> int:
        """The value that `module.lower` gives for `inputs`; `name` is what reports call it. Of torch.nn's modules
        Identity, Conv2d and MaxPool2d are known."""
        if type(module) is nn.Identity:
            return inputs[0]
        lower = getattr(module, "lower", None)
        if type(module) in _PLAIN:
            lower = functools.partial(_PLAIN[type(module)], module)
        if lower is None:
            raise Unplannable(f"{name}: {type(module).__name__} has no lower()")
        self._scope.append(name)
        value = lower(self, *inputs)
        self._scope.pop()
        return value

    def _add(self, kind: str, inputs: tuple[int, ...], channels: int, options: Any, weights: Any) -> int:
        options["in_channels"] = self._channels[inputs[0]]
        name = ".".join(self._scope) or kind
        self._nodes.append(Node(kind, name, inputs, channels, options, weights))
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
        activation: str | None = "relu6",
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

    def int8_inverted_residual(
        self,
        x: int,
        weights: dict[str, Tensor],
        *,
        stride: int,
        dilation: int,
        residual_scale: float | None,
        grids: tuple[Grid, Grid],
    ) -> int:
        """As reference.int8.inverted_residual: `weights` are weight, bias and scale of each of its convolutions, and
        `grids` those of its input and output."""
        options = {"stride": stride, "dilation": dilation, "residual_scale": residual_scale, "grids": grids}
        channels = weights["project_weight"].shape[0]
        return self._add("int8_inverted_residual", (x,), channels, options, dict(weights))

    def int8_pointwise(self, x: int, weights: dict[str, Tensor], *, grids: tuple[Grid, Grid]) -> int:
        """As reference.int8.pointwise: weight, bias and scale."""
        return self._add("int8_pointwise", (x,), len(weights["weight"]), {"grids": grids}, dict(weights))

    def int8_separable(
        self,
        x: int,
        depthwise: Sequence[Tensor],
        pointwise: Sequence[Tensor],
        zero: int,
        *,
        grids: tuple[Grid, Grid],
    ) -> int:
        """As reference.int8.separable: weight, bias and scale of both."""
        weights = {"depthwise": tuple(depthwise), "pointwise": tuple(pointwise)}
        return self._add("int8_separable", (x,), len(pointwise[0]), {"grids": grids, "zero": zero}, weights)

    def int8_daspp(
        self,
        x: int,
        direct: Sequence[Tensor],
        branches: Sequence[Any],
        floats: Sequence[Tensor],
        *,
        grids: tuple[Grid, Grid],
    ) -> int:
        """As reference.int8.daspp: `floats` are the weights of its end."""
        weights = {"direct": tuple(direct), "branches": list(branches), "floats": tuple(floats)}
        return self._add("int8_daspp", (x,), len(direct[0]), {"grids": grids}, weights)

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

    def _users(self) -> dict[int, list[Node]]:
        users: dict[int, list[Node]] = {}
        for node in self._nodes:
            for value in node.inputs:
                users.setdefault(value, []).append(node)
        return users

    def layers(self) -> tuple[list[Layer], list[int]]:
        """The network as layers of the compiled op, and the value each one makes."""
        users = self._users()

        def only(value: int, kind: str) -> Node | None:
            """The node of `kind` that alone reads `value`."""
            found = users.get(value, [])
            return found[0] if len(found) == 1 and found[0].kind == kind else None

        layers: list[Layer] = []
        values: list[int] = []
        done: set[int] = set()
        for index, node in enumerate(self._nodes):
            value = index + 1
            if value in done:
                continue
            layer: Layer | None = None
            options = node.options
            if node.kind == "inverted_residual" and options["kernel"] == 3:
                layer = InvertedResidual([node.name], node.inputs, node.channels, node)
            elif node.kind == "int8_inverted_residual":
                layer = Int8InvertedResidual([node.name], node.inputs, node.channels, node)
            elif node.kind == "int8_pointwise":
                layer = Int8Pointwise([node.name], node.inputs, node.channels, node)
            elif node.kind == "int8_daspp":
                layer = Int8Daspp([node.name], node.inputs, node.channels, node)
            elif node.kind == "daspp":
                layer = Daspp([node.name], node.inputs, node.channels, None, node)
            elif node.kind == "shuffle_unit":
                layer = ShuffleUnit([node.name], node.inputs, node.channels, node)
            elif node.kind == "convolution" and options["groups"] == 1:
                block, daspp = only(value, "inverted_residual"), only(value, "daspp")
                pool = only(value, "max_pool")
                if block is not None and node.inputs == (0,) and _is_stem(node, block):
                    layer = Stem([node.name, block.name], node.inputs, block.channels, node, block)
                    value = self._nodes.index(block) + 1
                elif daspp is not None and _is_last(node):
                    layer = Daspp([node.name, daspp.name], node.inputs, daspp.channels, node, daspp)
                    value = self._nodes.index(daspp) + 1
                elif pool is not None and node.inputs == (0,) and _is_stem_pool(node, pool):
                    layer = StemPool([node.name, pool.name], node.inputs, node.channels, node, pool)
                    value = self._nodes.index(pool) + 1
                elif options["kernel"] <= constant("most.dense_taps"):
                    if pool is None or not _is_half(pool) or not _is_fused_pool(node):
                        pool = None
                    names = [node.name] if pool is None else [node.name, pool.name]
                    layer = Convolution(names, node.inputs, node.channels, node, pool)
                    value = value if pool is None else self._nodes.index(pool) + 1
            elif node.kind == "separable" and options["kernel"] == 1 and node.inputs != (0,):
                layer = Convolution([node.name], node.inputs, node.channels, _merged(node), None)
            elif node.kind == "max_pool" and _is_half(node) and node.inputs != (0,):
                layer = MaxPool([node.name], node.inputs, node.channels, node)
            elif node.kind == "upsample" and options["align_corners"]:
                first = only(value, "separable")
                second = exact = None
                if first is not None:
                    behind = self._nodes.index(first) + 1
                    second, exact = only(behind, "separable"), only(behind, "int8_separable")
                last = second or exact
                head = None if last is None else only(self._nodes.index(last) + 1, "convolution")
                if first and exact and head and options["concat"] and _is_decoder(first, None, head):
                    names = [node.name, first.name, exact.name, head.name]
                    layer = Int8Decoder(names, node.inputs, head.channels, node, first, exact, head)
                    value = self._nodes.index(head) + 1
                elif first and second and head and _is_decoder(first, second, head):
                    names = [node.name, first.name, second.name, head.name]
                    layer = Decoder(names, node.inputs, head.channels, node, first, second, head)
                    value = self._nodes.index(head) + 1
            if layer is None:
                raise Unplannable(f"{node.name}: no layer of the plan covers this {node.kind}")
            done.update(range(index + 1, value + 1))
            layers.append(layer)
            values.append(value)
        return self._with_conversions(layers, values)

    def _with_conversions(self, layers: list[Layer], values: list[int]) -> tuple[list[Layer], list[int]]:
        """The same with a layer wherever one reads a value in another form than it was made in: numbers, or bytes on
        some grid."""
        made: dict[int, Grid | None] = {0: None}
        converted: dict[tuple[int, Grid | None], int] = {}
        all_layers: list[Layer] = []
        all_values: list[int] = []
        fresh = len(self._channels)

        def convert(value: int, grid: Grid | None) -> int:
            nonlocal fresh
            if made[value] == grid:
                return value
            if (value, grid) not in converted:
                # from one grid to another by way of numbers
                source = value if grid is None or made[value] is None else convert(value, None)
                kind = Dequantise if grid is None else Quantise
                used = made[source] if grid is None else grid
                assert used is not None
                name = f"{'numbers' if grid is None else 'bytes'} of {names[value]}"
                all_layers.append(kind([name], (source,), channels[value], used))
                all_values.append(fresh)
                made[fresh], names[fresh], channels[fresh] = grid, names[value], channels[value]
                converted[value, grid] = fresh
                fresh += 1
            return converted[value, grid]

        names = {0: "the input"}
        channels = {0: self._channels[0]}
        for layer, value in zip(layers, values, strict=True):
            reads, makes = layer.forms([made[source] for source in layer.inputs])
            layer.inputs = tuple(convert(*pair) for pair in zip(layer.inputs, reads, strict=True))
            made[value], names[value], channels[value] = makes, layer.names[-1], layer.channels
            all_layers.append(layer)
            all_values.append(value)
        if all_layers and made[all_values[-1]] is not None:
            convert(all_values[-1], None)
        return all_layers, all_values


def _convolution(conv: Any, program: Program, x: int) -> int:
    reason = intact.convolution(conv, "convolution")
    if reason is not None:
        raise Unplannable(reason)
    geometry = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
    return program.convolution(x, conv.weight, conv.bias, **geometry)


def _max_pool(pool: Any, program: Program, x: int) -> int:
    if pool.dilation not in (1, (1, 1)) or pool.ceil_mode or pool.return_indices:
        raise Unplannable(f"expected a max-pool without dilation, ceil_mode and indices, got {pool}")
    sizes = {"kernel": pool.kernel_size, "stride": pool.stride, "padding": pool.padding}
    return program.max_pool(x, **{key: _one(size) for key, size in sizes.items()})


_PLAIN: dict[type[nn.Module], Any] = {nn.Conv2d: _convolution, nn.MaxPool2d: _max_pool}


def _one(pair: int | Sequence[int]) -> int:
    if isinstance(pair, int):
        return pair
    if len(set(pair)) != 1:
        raise Unplannable(f"different values for height and width: {tuple(pair)}")
    return int(pair[0])


def _same3(node: Node, stride: int = 1) -> bool:
    """A 3x3 convolution that keeps its input's size."""
    wanted = {"kernel": 3, "stride": stride, "padding": 1, "dilation": 1}
    return all(node.options[name] == value for name, value in wanted.items())


def _is_stem_pool(conv: Node, pool: Node) -> bool:
    pooled = all(pool.options[name] == value for name, value in {"kernel": 3, "stride": 2, "padding": 1}.items())
    return pooled and _same3(conv, conv.options["stride"])


def _is_last(conv: Node) -> bool:
    """A convolution that a pyramid computes by slices."""
    wanted = {"kernel": 1, "stride": 1, "padding": 0}
    plain = conv.options["activation"] != "leaky_relu" and conv.inputs != (0,)
    return plain and all(conv.options[name] == value for name, value in wanted.items())


def _is_half(pool: Node) -> bool:
    return all(pool.options[name] == value for name, value in {"kernel": 2, "stride": 2, "padding": 0}.items())


def _is_fused_pool(conv: Node) -> bool:
    """Whether a pool may be part of the convolution: maxima before the activation need one that does not fall."""
    return conv.options["dilation"] == 1 and conv.options["negative_slope"] >= 0


def _merged(node: Node) -> Node:
    """A 1x1 separable convolution as a dense one."""
    weights = node.weights
    scale = weights["depthwise_weight"].double().view(1, -1, 1, 1)
    dense = (weights["pointwise_weight"].double() * scale).float()
    return Node(
        "convolution", node.name, node.inputs, node.channels, node.options, {"weight": dense, "bias": weights["bias"]}
    )


def _is_stem(conv: Node, block: Node) -> bool:
    plain = block.weights["expand_weight"] is None and not block.options["residual"]
    same = all(block.options[name] == value for name, value in {"kernel": 3, "stride": 1, "dilation": 1}.items())
    return plain and same and _same3(conv, conv.options["stride"])


def _is_decoder(first: Node, second: Node | None, head: Node) -> bool:
    pointwise = head.options["kernel"] == 1 and head.options["stride"] == 1 and head.options["groups"] == 1
    return _same3(first) and (second is None or _same3(second)) and pointwise and head.options["activation"] is None
