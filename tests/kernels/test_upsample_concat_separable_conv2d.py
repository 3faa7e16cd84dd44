"""upsample_concat_separable_conv2d against interpolate, cat and two conv2d of torch.nn.functional in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from tests.worlds import find

from .suite import (
    Case,
    assert_near,
    check_backward,
    check_double_backward_refused,
    check_forward,
    check_wrong_input,
    enter,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional
BACKWARD = "upsample_concat_separable_conv2d_backward"
OP = "upsample_concat_separable_conv2d"


def before_activation(
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    align_corners: bool = True,
    activation: str | None = None,
    negative_slope: float = 0.01,
    **geometry: Any,
) -> Tensor:
    up = tf.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=align_corners)
    whole = torch.cat((up, skip), 1)
    return tf.conv2d(tf.conv2d(whole, depthwise_weight, **geometry, groups=whole.shape[1]), pointwise_weight, bias)


def oracle(activation: str | None = None, negative_slope: float = 0.01, **arguments: Any) -> Tensor:
    z = before_activation(**arguments)
    if activation == "leaky_relu":
        return tf.leaky_relu(z, negative_slope)
    return {None: lambda v: v, "relu": tf.relu, "relu6": tf.relu6}[activation](z)


def case(
    name: str,
    n: int,
    c: int,
    size: tuple[int, int],
    skip: int,
    to: tuple[int, int],
    out: int,
    kernel: int | tuple[int, int] = 3,
    *,
    bias: bool = True,
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", ((kh - 1) // 2, (kw - 1) // 2))

    def make(g: torch.Generator) -> dict[str, Any]:
        return {
            "x": randn(g, n, c, *size),
            "skip": randn(g, n, skip, *to),
            "depthwise_weight": randn(g, c + skip, 1, kh, kw, scale=(kh * kw) ** -0.5),
            "pointwise_weight": randn(g, out, c + skip, 1, 1, scale=(c + skip) ** -0.5),
            "bias": randn(g, out) if bias else None,
        }

    return Case(name, make, options, slow, wide)


CASES = [
    case("one pixel to one pixel", 1, 3, (1, 1), 1, (1, 1), 5),
    case("one pixel to a map", 2, 1, (1, 1), 3, (4, 5), 3, activation="relu"),
    case("eight times larger", 1, 5, (1, 2), 7, (7, 15), 9, activation="relu"),
    case("eight times larger, half-pixel", 1, 5, (2, 1), 7, (15, 7), 4, align_corners=False),
    case("several tiles, 24 + 31 channels", 1, 24, (2, 2), 31, (9, 9), 24, activation="relu6"),
    case("four times larger", 1, 4, (2, 2), 3, (7, 8), 6, bias=False),
    case("twice as large: two launches", 1, 4, (3, 4), 3, (6, 7), 6, activation="leaky_relu", negative_slope=0.1),
    case("smaller", 1, 3, (9, 8), 2, (4, 3), 5, align_corners=False),
    case("no padding, stride 2", 2, 6, (1, 2), 3, (9, 8), 5, padding=0, stride=2),
    case("dilation beyond the map", 1, 3, (2, 2), 4, (7, 6), 5, dilation=9, padding=9),
    case("different in height and width", 1, 3, (2, 3), 4, (8, 13), 5, (1, 3), stride=(2, 1), dilation=(1, 2)),
    case("kernel 5: two launches", 1, 3, (2, 2), 4, (6, 5), 5, 5),
    case("96 + 384 channels", 1, 96, (1, 1), 384, (2, 3), 19, activation="relu", wide=True),
    case("batch 0", 0, 4, (2, 3), 5, (16, 24), 3, activation="relu"),
    case("LiteSeg's at 90 x 160", 1, 96, (12, 20), 24, (90, 160), 96, slow=True, activation="relu"),
]


def _factor(case: Case) -> float:
    # positions in float32 over 20 pixels, as test_upsample_concat has it
    return 4.0 if case.slow else 1.0


@parametrise(OP, CASES)
def test_forward(world_name: str, case: Case) -> None:
    compare = partial(assert_near, factor=_factor(case))
    check_forward(F.upsample_concat_separable_conv2d, oracle, world_name, case, maps=("x", "skip"), compare=compare)


# the backward is made of kernels that have tests of their own: not every shape again in the interpreter
@parametrise(
    OP,
    [c for c in CASES if not c.name.startswith(("several", "smaller", "four", "eight times larger,"))],
    also=BACKWARD,
)
def test_backward(world_name: str, case: Case) -> None:
    check_backward(
        *(F.upsample_concat_separable_conv2d, oracle, world_name, case),
        maps=("x", "skip"),
        factor=2 * _factor(case),
        before_activation=before_activation,
    )


def test_explain_tells_one_kernel_from_two() -> None:
    arguments = {k: v.float() for k, v in CASES[2].make(torch.Generator()).items()}
    if find("cpu").available:
        with lk.use_backend("cpu"):
            answer = lk.explain(OP, **arguments)
        assert (answer.backend, answer.note) == ("cpu", "as upsample_concat, then separable_conv2d")
        assert str(answer).startswith(f"{OP}: cpu, as upsample_concat, then separable_conv2d\n")
    with enter("interpreter"):
        answer = lk.explain(OP, **arguments)
        assert (answer.backend, answer.note) == ("triton", "")


def _arguments() -> tuple[Tensor, ...]:
    shapes = ((2, 3, 2, 3), (2, 4, 9, 8), (7, 1, 3, 3), (5, 7, 1, 1), (5,))
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("align_corners", [True, False])
def test_registration(align_corners: bool) -> None:
    args = (*_arguments(), [2, 2], [1, 1], [1, 1], 1, 0.1, align_corners)
    opcheck(torch.ops.liteseg.upsample_concat_separable_conv2d.default, args, maps=(0, 1))


@pytest.mark.parametrize("mask", [[True] * 5, [False, True, False, True, False], [False, False, True, True, True]])
def test_registration_of_backward(mask: list[bool]) -> None:
    x, skip, depthwise, pointwise, _ = (t.detach() for t in _arguments())
    grad, output = torch.randn(2, 5, 5, 4), torch.randn(2, 5, 5, 4)
    args = (grad, x, skip, depthwise, pointwise, output, [2, 2], [1, 1], [1, 1], 1, 0.1, True, mask)
    opcheck(torch.ops.liteseg.upsample_concat_separable_conv2d_backward.default, args, maps=(0, 1, 2))


def test_double_backward_is_refused() -> None:
    x, *rest = _arguments()
    check_double_backward_refused(OP, F.upsample_concat_separable_conv2d(x, *rest), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 5\]", {"x": torch.randn(3, 4, 5)}),
    ("skip is a size", TypeError, "skip: expected a tensor, got tuple", {"skip": (7, 8)}),
    ("batches", ValueError, r"skip: expected \[2, C, H, W\], got \[1, 4, 9, 8\]", {"skip": torch.randn(1, 4, 9, 8)}),
    ("dtype mix", TypeError, "skip: expected x's dtype float32, got float16", {"skip": torch.randn(2, 4, 9, 8).half()}),
    (
        "weights of x alone",
        ValueError,
        r"depthwise_weight: expected \[7, 1, kh, kw\], got \[3, 1, 3, 3\]",
        {"depthwise_weight": torch.randn(3, 1, 3, 3)},
    ),
    (
        "pointwise shape",
        ValueError,
        r"pointwise_weight: expected \[C_out, 7, 1, 1\], got \[5, 4, 1, 1\]",
        {"pointwise_weight": torch.randn(5, 4, 1, 1)},
    ),
    ("bias shape", ValueError, r"bias: expected \[5\], got \[7\]", {"bias": torch.randn(7)}),
    ("kernel beyond the map", ValueError, "skip: expected a height of at least the kernel's extent", {"dilation": 9}),
    ("activation", ValueError, "activation: expected None, 'relu'.*got 'gelu'", {"activation": "gelu"}),
    ("align_corners", TypeError, "align_corners: expected True or False, got None", {"align_corners": None}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    names = ("x", "skip", "depthwise_weight", "pointwise_weight", "bias")
    arguments = dict(zip(names, (t.detach() for t in _arguments()), strict=True))
    check_wrong_input(OP, arguments | change, error, text)
