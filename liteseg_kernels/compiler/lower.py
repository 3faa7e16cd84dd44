"""From the nodes of an aten graph to `ir.Op`s: which nodes a region can hold, and what each one means there."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ..plan.contract import constant
from . import ir, resize, whole  # noqa: F401  # define ops

aten = torch.ops.aten


class Refused(Exception):
    """A node that no region can hold; the text says why."""


def number(value: Any) -> int:
    """A size as it was when the graph was traced."""
    return int(value.node.hint) if isinstance(value, torch.SymInt) else int(value)


def first_value(node: fx.Node) -> Any:
    """What a node makes; the first of several."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, (tuple, list)) and value else value


def described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} on {value.device.type}"


def shape_of(node: fx.Node) -> ir.Shape:
    """Of a map that a region can hold."""
    value = first_value(node)
    if not isinstance(value, Tensor) or value.dim() != 4 or value.layout != torch.strided:
        raise Refused("not a map [N, C, H, W]")
    if value.device.type != "cpu" or value.dtype != torch.float32:
        raise Refused(described(value))
    if isinstance(value.shape[1], torch.SymInt):
        raise Refused("number of channels is not fixed")
    return int(value.shape[1]), number(value.shape[2]), number(value.shape[3])


def innermost(node: fx.Node) -> bool:
    """Whether a map was channels_last (True) or NCHW (False) when the graph was traced."""
    value = first_value(node)
    sizes, strides = [number(s) for s in value.shape], [number(s) for s in value.stride()]
    differing = []
    for order in ((3, 2, 1, 0), (1, 3, 2, 0)):
        expected, step = [0] * 4, 1
        for dim in order:
            expected[dim] = step
            step *= sizes[dim]
        differing.append({dim for dim in order if strides[dim] != expected[dim]})
    # strides of a single row, column or channel mean nothing, but what follows may go by them
    for layout, wrong in sorted(enumerate(differing), key=lambda of: len(of[1])):
        if all(sizes[dim] == 1 for dim in wrong):
            return bool(layout)
    raise Refused("neither contiguous nor channels_last")


def label(node: fx.Node) -> str:
    """The module whose call made a node, or the node's own name."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return node.name
    path = re.sub(r"^L\['\w+'\]", "", str(list(stack.values())[-1][0]))
    path = re.sub(r"_modules\['(\w+)'\]|\['?(\w+)'?\]", r".\1\2", path)
    return re.sub(r"\.+", ".", path).strip(".") or node.name


class Reader(Protocol):
    """How the rules below reach the arguments of a node."""

    def map(self, node: Any) -> ir.Op:
        """A map [N, C, H, W]."""

    def static(self, node: Any) -> int:
        """A parameter, as its place in the region's arguments."""

    def size(self, value: Any) -> Any:
        """A number of pixels that may change from call to call."""


class Trial:
    """Asks only whether a rule takes a node."""

    def __init__(self, is_static: Callable[[fx.Node], bool]) -> None:
        self._is_static = is_static

    def map(self, node: Any) -> ir.Op:
        if not isinstance(node, fx.Node):
            raise Refused("an argument is not a map")
        if self._is_static(node):
            raise Refused("a parameter is used as a map")
        return ir.Input(label(node), [], shape_of(node))

    def static(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or not self._is_static(node):
            raise Refused("weights are computed")
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.dtype != torch.float32:
            raise Refused("weights are not float32 on the CPU")
        span = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
        if span != value.numel():
            raise Refused("weights are not dense")
        return 0

    def size(self, value: Any) -> Any:
        if isinstance(value, fx.Node) and not value.meta.get("hoisted"):
            raise Refused("a size that depends on more than the shapes of the inputs")
        return value


def arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by the names of its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    return {
        argument.name: node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(schema.arguments)
    }


def _pair(values: Any) -> tuple[int, int]:
    values = [values] if isinstance(values, int) else list(values)
    if not all(isinstance(v, int) for v in values):
        raise Refused("a convolution or pool of changing geometry")
    return (values[0], values[-1])


def _convolution(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if a.get("transposed"):
        raise Refused("transposed convolution")
    x = read.map(a["input"])
    if isinstance(a["padding"], str):
        raise Refused("padding given by name")
    stride, padding, dilation = _pair(a["stride"]), _pair(a["padding"]), _pair(a["dilation"])
    weight = a["weight"].meta.get("val") if isinstance(a["weight"], fx.Node) else None
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        raise Refused("not a two-dimensional convolution")
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    groups = a["groups"]
    shared: dict[str, Any] = {
        "weight": read.static(a["weight"]),
        "bias": None if a["bias"] is None else read.static(a["bias"]),
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": (padding[0], padding[0], padding[1], padding[1]),
    }
    if max(stride) > constant("most.stride"):
        raise Refused("stride")
    if groups == 1 and not (x.channels == 1 and weight.shape[0] == 1):
        if kernel[0] != kernel[1] or stride[0] != stride[1] or dilation[0] != dilation[1]:
            raise Refused("dense convolution that differs along height and width")
        if kernel[0] > constant("most.dense_taps"):
            raise Refused(f"dense convolution of {kernel[0]}x{kernel[1]}")
        return ir.Convolution(label(node), [x], shape_of(node), **shared)
    if groups != x.channels or weight.shape[0] != x.channels:
        raise Refused("grouped convolution")
    if max(kernel) > constant("most.depthwise_taps"):
        raise Refused(f"depthwise convolution of {kernel[0]}x{kernel[1]}")
    return ir.Depthwise(label(node), [x], shape_of(node), **shared)


def _batch_norm(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if a.get("training", False):
        raise Refused("batch normalisation by the statistics of the batch")
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users) and isinstance(
        node.meta.get("val"), (tuple, list)
    ):
        raise Refused("the statistics are used")
    if a["running_mean"] is None or a["running_var"] is None:
        raise Refused("batch normalisation without running statistics")
    return _by_statistics(node, read, a["input"], a["running_mean"], a["running_var"])


def _norm(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    return _by_statistics(node, read, a["x"], a["mean"], a["var"])


def _by_statistics(node: fx.Node, read: Reader, x: Any, mean: Any, var: Any) -> ir.Op:
    a = arguments(node)
    norm = ir.Norm(
        None if a["weight"] is None else read.static(a["weight"]),
        None if a["bias"] is None else read.static(a["bias"]),
        read.static(mean),
        read.static(var),
        float(a["eps"]),
    )
    return ir.Depthwise(label(node), [read.map(x)], shape_of(node), after=[norm])


def _activation(name: str) -> Callable[[fx.Node, Reader], ir.Op]:
    def rule(node: fx.Node, read: Reader) -> ir.Op:
        a = arguments(node)
        slope = float(a.get("negative_slope", 0.0))
        return ir.Activate(label(node), [read.map(a["self"])], shape_of(node), ir.Activation(name, slope))

    return rule


def _named_activation(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    return ir.Activate(label(node), [read.map(a["x"])], shape_of(node), ir.Activation(a["name"]))


def _clamp(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    low, high = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
    names: dict[Any, str] = {(0, 6): "relu6", (0, None): "relu"}
    name = names.get((low, high))
    if name is None:
        raise Refused(f"clamping to {low}..{high}")
    return ir.Activate(label(node), [read.map(a["self"])], shape_of(node), ir.Activation(name))


def _same_batch(a: fx.Node, b: fx.Node) -> bool:
    sizes = [first_value(node).shape[0] for node in (a, b)]
    return bool(torch.fx.experimental.symbolic_shapes.statically_known_true(sizes[0] == sizes[1]))


def _scalar(node: fx.Node, read: Reader, x: Any, scale: float, shift: float) -> ir.Op:
    return ir.Depthwise(label(node), [read.map(x)], shape_of(node), after=[ir.Scalar(scale, shift)])


def _combination(multiplies: bool) -> Callable[[fx.Node, Reader], ir.Op]:
    def rule(node: fx.Node, read: Reader) -> ir.Op:
        a = arguments(node)
        x, y, alpha = a["self"], a["other"], a.get("alpha", 1)
        if isinstance(y, (int, float)):
            return _scalar(node, read, x, *((y, 0.0) if multiplies else (1.0, y * alpha)))
        if alpha != 1:
            raise Refused("a scaled sum")
        if not isinstance(x, fx.Node) or not isinstance(y, fx.Node):
            raise Refused("an argument is not a map")
        left, right = read.map(x), read.map(y)
        if not _same_batch(x, y) or left.channels != right.channels:
            raise Refused("maps of different batch or channels")
        known = torch.fx.experimental.symbolic_shapes.statically_known_true
        shapes = [first_value(n).shape for n in (x, y)]
        if not all(known(shapes[0][dim] == shapes[1][dim]) for dim in (2, 3)):
            if all(known(shapes[0][dim] == 1) for dim in (2, 3)):
                left, right = right, left
            elif not all(known(shapes[1][dim] == 1) for dim in (2, 3)):
                raise Refused("maps of different sizes")
        return ir.Combine(label(node), [left, right], shape_of(node), multiplies=multiplies)

    return rule


def _divide(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if not isinstance(a["other"], (int, float)) or a["other"] == 0 or a.get("rounding_mode") is not None:
        raise Refused("division")
    return _scalar(node, read, a["self"], 1.0 / a["other"], 0.0)


def _concat(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if a["dim"] not in (1, -3):
        raise Refused("concatenation that is not along the channels")
    maps = [read.map(x) for x in a["tensors"]]
    if not all(_same_batch(a["tensors"][0], x) for x in a["tensors"]):
        raise Refused("maps of different batch")
    return ir.Concat(node.name, maps, shape_of(node))


def _mean(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    dims = sorted(d % 4 for d in a["dim"] or ())
    if dims != [2, 3] or not a["keepdim"] or a["dtype"] not in (None, torch.float32):
        raise Refused("a mean that is not over the pixels, or does not keep their dimensions")
    return ir.Mean(label(node), [read.map(a["self"])], shape_of(node))


def _adaptive_mean(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if list(a["output_size"]) != [1, 1]:
        raise Refused("adaptive pool to more than one pixel")
    return ir.Mean(label(node), [read.map(a["self"])], shape_of(node))


def _window(maximum: bool) -> Callable[[fx.Node, Reader], ir.Op]:
    def rule(node: fx.Node, read: Reader) -> ir.Op:
        a = arguments(node)
        kernel = _pair(a["kernel_size"])
        stride = _pair(a["stride"]) if a["stride"] else kernel
        if a["ceil_mode"] or _pair(a.get("dilation", 1)) != (1, 1) or a.get("divisor_override"):
            raise Refused("pool with ceil_mode, dilation or a divisor of its own")
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users) and isinstance(
            node.meta.get("val"), (tuple, list)
        ):
            raise Refused("the places of the maxima are used")
        padding = _pair(a["padding"])
        return ir.Window(
            label(node),
            [read.map(a["self"])],
            shape_of(node),
            maximum=maximum,
            counts_zeros=bool(a.get("count_include_pad", True)),
            kernel=kernel,
            stride=stride,
            padding=padding,
        )

    return rule


def whole_scale(scale: float | None) -> bool:
    """Whether resizing by `scale` has the same sample points as resizing to the size that it gives."""
    return scale is None or (scale >= 1 and float(scale).is_integer())


def _resize(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    bilinear = a["mode"] == "bilinear"
    if not (bilinear and a["align_corners"]) and not (whole_scale(a["scales_h"]) and whole_scale(a["scales_w"])):
        raise Refused("resize by a factor that is no whole number")
    height, width = (read.size(s) for s in a["size"])
    x, shape = read.map(a["x"]), shape_of(node)
    if not bilinear:
        return ir.Nearest(label(node), [x], shape, sizes=(height, width))
    return ir.Resize(label(node), [x], shape, sizes=(height, width), align_corners=a["align_corners"])


def _pad(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    amounts = list(a["pad"])
    if len(amounts) > 4 or a["value"] != 0 or not all(isinstance(p, int) for p in amounts):
        raise Refused("padding of other dimensions, by other values or by changing amounts")
    left, right, top, bottom = amounts + [0] * (4 - len(amounts))
    return ir.Pad(label(node), [read.map(a["self"])], shape_of(node), padding=(top, bottom, left, right))


def _labels(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if a["dim"] not in (1, -3) or a["keepdim"]:
        raise Refused("arg max that is not over the channels")
    x = read.map(a["self"])
    if x.channels > constant("most.classes"):
        raise Refused(f"arg max over more than {constant('most.classes')} channels")
    return ir.Labels(label(node), [x], (1, *x.shape[1:]))


def _same(node: fx.Node, read: Reader) -> ir.Op:
    a = arguments(node)
    if a.get("train") or a.get("training"):
        raise Refused("dropout in training")
    if first_value(node).dtype != first_value(node.args[0]).dtype:  # type: ignore[arg-type]
        raise Refused("change of dtype")
    shape_of(node)
    return read.map(node.args[0])


RULES: dict[Any, Callable[[fx.Node, Reader], ir.Op]] = {
    aten.convolution.default: _convolution,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.relu.default: _activation("relu"),
    aten.relu6.default: _activation("relu6"),
    aten.leaky_relu.default: _activation("leaky_relu"),
    aten.hardswish.default: _activation("hardswish"),
    aten.silu.default: _activation("silu"),
    aten.hardsigmoid.default: _activation("hardsigmoid"),
    aten.sigmoid.default: _activation("sigmoid"),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.add.Tensor: _combination(False),
    aten.mul.Tensor: _combination(True),
    aten.div.Tensor: _divide,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
    aten._adaptive_avg_pool2d.default: _adaptive_mean,
    aten.max_pool2d_with_indices.default: _window(True),
    aten.avg_pool2d.default: _window(False),
    torch.ops.liteseg.resize.default: _resize,
    torch.ops.liteseg.activate.default: _named_activation,
    torch.ops.liteseg.norm.default: _norm,
    aten.constant_pad_nd.default: _pad,
    aten.argmax.default: _labels,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
}


def refusal(node: fx.Node, is_static: Callable[[fx.Node], bool]) -> str | None:
    """Why a region cannot hold a node, or None."""
    if node.op != "call_function":
        return "not a call of a function"
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.target not in RULES or node.args[1] != 0:
            return "one of several results"
        return refusal(source, is_static)
    rule = RULES.get(node.target)
    if rule is None:
        return "no rule for it"
    try:
        rule(node, Trial(is_static))
        if node.target is not aten.argmax.default:
            innermost(node)
    except Refused as reason:
        return str(reason)
    return None


class RegionReader:
    """Reads the graph of a region: maps that are made inside, and placeholders for all that comes from outside."""

    def __init__(self, graph: fx.Graph) -> None:
        self.placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._index = {node: i for i, node in enumerate(self.placeholders)}
        self._made: dict[fx.Node, ir.Op] = {}

    def map(self, node: Any) -> ir.Op:
        if node not in self._made:
            # not made in the region, so one of its arguments
            self._made[node] = ir.Input(label(node), [], shape_of(node), index=self._index[node])
        return self._made[node]

    def static(self, node: Any) -> int:
        return self._index[node]

    def size(self, value: Any) -> Any:
        return ir.Argument(self._index[value]) if isinstance(value, fx.Node) else value

    def lower(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            self._made[node] = self.map(node.args[0])
        else:
            self._made[node] = RULES[node.target](node, self)


def lower(graph: fx.Graph) -> tuple[list[ir.Op], list[fx.Node]]:
    """The operations behind the results of a region, and the nodes that stand for those results."""
    reader = RegionReader(graph)
    results: Sequence[fx.Node] = ()
    for node in graph.nodes:
        if node.op == "call_function":
            reader.lower(node)
        elif node.op == "output":
            value = node.args[0]
            results = value if isinstance(value, (tuple, list)) else (value,)
    return [reader.map(node) for node in results], list(results)
