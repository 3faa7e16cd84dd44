"""inverted_residual against three torch.nn.functional.conv2d and their activations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from .suite import (
    Case,
    check_backward,
    check_double_backward_refused,
    check_forward,
    check_wrong_input,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional
ACTIVATIONS: dict[str | None, Any] = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: tf.relu(z),
    "relu6": lambda z, slope: tf.relu6(z),
    "leaky_relu": tf.leaky_relu,
}


def before_activation(
    which: str,
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    stride: int | tuple[int, int] = 1,
    dilation: int = 1,
    activation: str | None = "relu6",
    negative_slope: float = 0.01,
    residual: bool = False,
) -> Tensor:
    """Output of the block's `which` convolution, "expand" or "depthwise"."""
    hidden = x
    if expand_weight is not None:
        hidden = tf.conv2d(x, expand_weight, expand_bias)
        if which == "expand":
            return hidden
        hidden = ACTIVATIONS[activation](hidden, negative_slope)
    padding = [dilation * (k - 1) // 2 for k in depthwise_weight.shape[2:]]
    return tf.conv2d(hidden, depthwise_weight, depthwise_bias, stride, padding, dilation, hidden.shape[1])


def oracle(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: int | tuple[int, int] = 1,
    dilation: int = 1,
    activation: str | None = "relu6",
    negative_slope: float = 0.01,
    residual: bool = False,
) -> Tensor:
    weights = (expand_weight, expand_bias, depthwise_weight, depthwise_bias)
    hidden = before_activation("depthwise", x, *weights, stride, dilation, activation, negative_slope)
    out = tf.conv2d(ACTIVATIONS[activation](hidden, negative_slope), project_weight, project_bias)
    return x + out if residual else out


def off_kinks(bias: Tensor, z: Tensor) -> Tensor:
    """`bias` moved by up to 1e-3 a channel, so that no value of `z`, the map it is part of, is within a rounding of a
    kink: whoever rounds otherwise than the oracle would see another slope there."""
    moves = torch.linspace(0, 1e-3, 33, dtype=z.dtype)
    moved = z + moves.view(-1, 1, 1, 1, 1)
    gap = torch.minimum(moved.abs(), (moved - 6).abs()).amin((1, 3, 4))
    return bias + moves[gap.argmax(0)]


def case(
    name: str,
    n: int,
    c: int,
    h: int,
    w: int,
    out: int,
    ratio: int,
    kernel: tuple[int, int] = (3, 3),
    *,
    bias: bool = True,
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        hidden = c * ratio
        # wide enough that both ends of relu6 clip in both places, and biases that padding must not add
        tensors = {
            "x": randn(g, n, c, h, w),
            "expand_weight": randn(g, hidden, c, 1, 1, scale=3 * c**-0.5) if ratio != 1 else None,
            "expand_bias": randn(g, hidden) if ratio != 1 and bias else None,
            "depthwise_weight": randn(g, hidden, 1, *kernel, scale=2 * (kernel[0] * kernel[1]) ** -0.5),
            "depthwise_bias": randn(g, hidden) if bias else None,
            "project_weight": randn(g, out, hidden, 1, 1, scale=hidden**-0.5),
            "project_bias": randn(g, out) if bias else None,
        }
        if bias and n:
            for name in ("expand", "depthwise") if ratio != 1 else ("depthwise",):
                z = before_activation(name, **{k: t for k, t in tensors.items() if "project" not in k}, **options)
                tensors[f"{name}_bias"] = off_kinks(tensors[f"{name}_bias"], z)
        return tensors

    return Case(name, make, options, slow, wide)


CASES = [
    case("one pixel, one channel", 1, 1, 1, 1, 3, 6),
    case("no expansion", 2, 5, 4, 5, 4, 1),
    case("residual", 2, 8, 5, 7, 8, 2, residual=True),
    case("residual without expansion or biases", 1, 3, 3, 4, 3, 1, bias=False, residual=True),
    case("stride 2 on an odd size", 1, 3, 7, 9, 24, 6, stride=2),
    case("stride 2 on an even size, relu", 1, 4, 6, 8, 5, 3, stride=2, activation="relu"),
    case("dilation beyond the map", 1, 4, 3, 5, 4, 2, dilation=7, residual=True),
    case("stride 2 along the width, dilation 2", 1, 4, 5, 7, 6, 2, stride=(1, 2), dilation=2),
    case("31 channels, leaky", 1, 31, 3, 4, 7, 1, activation="leaky_relu", negative_slope=0.2),
    case("kernel 1 x 5, no activation", 1, 3, 4, 6, 5, 2, (1, 5), activation=None),
    case("24 to 24", 1, 24, 3, 3, 24, 2, residual=True, wide=True),
    case("96 to 31", 1, 96, 2, 3, 31, 1, wide=True),
    case("384 to 24", 1, 384, 1, 2, 24, 1, stride=2, wide=True),
    case("batch 0", 0, 4, 5, 6, 3, 2),
    case("24 to 24, 31 x 65", 1, 24, 31, 65, 24, 6, residual=True, slow=True),
    case("96 to 24, stride 2, 63 x 17, batch 2", 2, 96, 63, 17, 24, 6, stride=2, slow=True),
    case("384 to 96, 9 x 11", 1, 384, 9, 11, 96, 2, slow=True),
    case("160 to 160, dilation 2, 12 x 20", 1, 160, 12, 20, 160, 6, dilation=2, residual=True, slow=True),
]


@parametrise("inverted_residual", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.inverted_residual, oracle, world_name, case, maps=("x",))


@parametrise("inverted_residual", CASES, also="inverted_residual_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(F.inverted_residual, oracle, world_name, case, maps=("x",))


def _weights(expansion: bool, grad: bool) -> list[Tensor | None]:
    shapes: list[tuple[int, ...] | None] = [(12, 6, 1, 1), (12,), (12, 1, 3, 3), (12,), (6, 12, 1, 1), (6,)]
    if not expansion:
        shapes = [None, None, (6, 1, 3, 3), (6,), (6, 6, 1, 1), (6,)]
    return [None if shape is None else torch.randn(shape, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("expansion", [True, False], ids=["expansion", "none"])
def test_registration(expansion: bool, stride: int) -> None:
    args = (torch.randn(2, 6, 7, 8, requires_grad=True), *_weights(expansion, True))
    args += ([stride, stride], [1, 1], 2, 0.0, stride == 1)
    opcheck(torch.ops.liteseg.inverted_residual.default, args)


@pytest.mark.parametrize("expansion", [True, False], ids=["expansion", "none"])
def test_registration_of_backward(expansion: bool) -> None:
    x, grad, weights = torch.randn(2, 6, 7, 8), torch.randn(2, 6, 7, 8), _weights(expansion, False)
    for mask in ([True, expansion, expansion, *[True] * 4], [False, False, False, True, False, True, False]):
        args = (grad, x, *weights[:5], [1, 1], [1, 1], 2, 0.0, True, mask)
        opcheck(torch.ops.liteseg.inverted_residual_backward.default, args, maps=(0, 1))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    check_double_backward_refused("inverted_residual", F.inverted_residual(x, *_weights(True, False)), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[6, 7, 8\]", {"x": torch.randn(6, 7, 8)}),
    ("x is boolean", TypeError, "x: expected dtype float32, .*got bool", {"x": torch.ones(1, 6, 7, 8, dtype=bool)}),
    ("empty map", ValueError, "x: expected height and width of at least 1", {"x": torch.randn(1, 6, 7, 0)}),
    (
        "expansion from other channels",
        ValueError,
        r"expand_weight: expected \[12, 6, 1, 1\], got \[12, 5, 1, 1\]",
        {"expand_weight": torch.randn(12, 5, 1, 1)},
    ),
    ("expansion bias alone", ValueError, "expand_bias: expected None where expand_weight", {"expand_weight": None}),
    (
        "no expansion, more channels",
        ValueError,
        r"depthwise_weight: expected \[6, 1, kh, kw\] where expand_weight is None, got \[12, 1, 3, 3\]",
        {"expand_weight": None, "expand_bias": None},
    ),
    (
        "even kernel",
        ValueError,
        r"depthwise_weight: expected an odd kernel, got \[12, 1, 2, 2\]",
        {"depthwise_weight": torch.randn(12, 1, 2, 2)},
    ),
    ("depthwise bias", ValueError, r"depthwise_bias: expected \[12\], got \[6\]", {"depthwise_bias": torch.randn(6)}),
    (
        "projection from other channels",
        ValueError,
        r"project_weight: expected \[C_out, 12, 1, 1\], got \[6, 11, 1, 1\]",
        {"project_weight": torch.randn(6, 11, 1, 1)},
    ),
    (
        "dtype mix",
        TypeError,
        "project_bias: expected x's dtype float32, got float16",
        {"project_bias": torch.randn(6, dtype=torch.float16)},
    ),
    (
        "device mix",
        ValueError,
        "depthwise_bias: expected x's device cpu, got meta",
        {"depthwise_bias": torch.randn(12, device="meta")},
    ),
    ("weight is no tensor", TypeError, "depthwise_weight: expected a tensor, got None", {"depthwise_weight": None}),
    ("residual with a stride", ValueError, r"residual: expected stride 1 .*got stride \(2, 2\)", {"stride": 2}),
    (
        "residual to other channels",
        ValueError,
        "residual: expected .*got stride .* 6 -> 5 channels",
        {"project_weight": torch.randn(5, 12, 1, 1), "project_bias": None},
    ),
    ("zero stride", ValueError, "stride: expected at least 1, got 0", {"stride": 0}),
    ("text as stride", TypeError, "stride: expected ints, got 'ab'", {"stride": "ab"}),
    ("negative dilation", ValueError, "dilation: expected at least 1, got -1", {"dilation": -1}),
    ("float dilation", TypeError, "dilation: expected ints, got 1.5", {"dilation": 1.5}),
    ("activation", ValueError, "activation: expected None, 'relu'.*got 'swish'", {"activation": "swish"}),
    ("slope", TypeError, "negative_slope: expected a number, got None", {"negative_slope": None}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    names = ("expand_weight", "expand_bias", "depthwise_weight", "depthwise_bias", "project_weight", "project_bias")
    arguments = {"x": torch.randn(1, 6, 7, 8), **dict(zip(names, _weights(True, False), strict=True)), "residual": True}
    check_wrong_input("inverted_residual", arguments | change, error, text)
