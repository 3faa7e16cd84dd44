"""shuffle_unit against grouped torch.nn.functional.conv2d, channel_shuffle and avg_pool2d in float64."""

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
    enter,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional
NAMES = ("compress_weight", "compress_bias", "depthwise_weight", "depthwise_bias", "expand_weight", "expand_bias")


def before_activation(
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    groups: int,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    concat: bool = False,
) -> Tensor:
    first_groups = x.shape[1] // compress_weight.shape[1]
    hidden = tf.relu(tf.conv2d(x, compress_weight, compress_bias, groups=first_groups))
    # channel i of group j goes to place i * groups + j
    order = torch.arange(hidden.shape[1]).view(groups, -1).t().flatten()
    hidden = tf.conv2d(
        hidden[:, order], depthwise_weight, depthwise_bias, stride, dilation, dilation, groups=hidden.shape[1]
    )
    branch = tf.conv2d(hidden, expand_weight, expand_bias, groups=groups)
    if concat:
        return torch.cat((tf.avg_pool2d(x, 3, stride, 1, count_include_pad=True), branch), 1)
    return x + branch


def oracle(**arguments: Any) -> Tensor:
    return tf.relu(before_activation(**arguments))


def weights(g: torch.Generator | None, c: int, bottleneck: int, branch: int, groups: int, first: int) -> list[Tensor]:
    generator = g or torch.Generator().manual_seed(0)
    return [
        randn(generator, bottleneck, c // first, 1, 1, scale=(c // first) ** -0.5),
        randn(generator, bottleneck),
        randn(generator, bottleneck, 1, 3, 3, scale=1 / 3),
        randn(generator, bottleneck),
        randn(generator, branch, bottleneck // groups, 1, 1, scale=(bottleneck // groups) ** -0.5),
        randn(generator, branch),
    ]


def case(
    name: str,
    n: int,
    c: int,
    h: int,
    w: int,
    bottleneck: int,
    groups: int,
    first: int | None = None,
    branch: int | None = None,
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        parts = weights(g, c, bottleneck, branch or c, groups, first or groups)
        return {"x": randn(g, n, c, h, w), **dict(zip(NAMES, parts, strict=True))}

    return Case(name, make, {"groups": groups, "concat": branch is not None, **options}, slow, wide)


CASES = [
    case("one pixel", 1, 4, 1, 1, 2, 2),
    case("one channel, one group", 2, 1, 3, 4, 3, 1),
    case("added, 3 groups", 2, 6, 3, 5, 3, 3),
    case("first convolution not grouped", 1, 6, 4, 5, 4, 2, first=1, branch=4, stride=2),
    case("concatenated at stride 2, odd size", 2, 6, 5, 3, 4, 2, branch=4, stride=2),
    case("concatenated at stride 2, even size", 1, 3, 6, 8, 4, 2, first=1, branch=6, stride=2),
    case("concatenated at stride 1", 1, 4, 3, 5, 4, 2, branch=2),
    case("dilation beyond the map", 1, 4, 3, 4, 4, 2, dilation=6),
    case("strides and dilations differ by axis", 1, 4, 5, 9, 4, 2, branch=4, stride=(1, 3), dilation=(2, 1)),
    case("31 channels", 1, 31, 3, 3, 4, 1),
    case("24 channels", 1, 24, 2, 3, 8, 4, wide=True),
    case("96 channels", 1, 96, 2, 2, 24, 8, wide=True),
    case("384 channels, 2 groups", 1, 384, 1, 2, 6, 2, wide=True),
    case("batch 0", 0, 8, 5, 6, 4, 2),
    case("384 channels, 8 groups, 12 x 20", 1, 384, 12, 20, 96, 8, slow=True),
    case(
        "24 to 384 as the network's first unit, 63 x 65", 1, 24, 63, 65, 96, 8, first=1, branch=360, stride=2, slow=True
    ),
    case("96 channels, dilation 4, 127 wide, batch 2", 2, 96, 5, 127, 24, 8, dilation=4, slow=True),
]


@parametrise("shuffle_unit", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.shuffle_unit, oracle, world_name, case, maps=("x",))


@parametrise("shuffle_unit", CASES, also="shuffle_unit_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(F.shuffle_unit, oracle, world_name, case, maps=("x",), before_activation=before_activation)


@pytest.mark.parametrize("concat", [True, False], ids=["concat", "add"])
def test_threads_do_not_change_the_result(concat: bool) -> None:
    g = torch.Generator().manual_seed(0)
    # enough work for several pieces, whose first and last rows two threads compute
    x = randn(g, 2, 96, 33, 30).float()
    parts = [w.float() for w in weights(g, 96, 48, 48 if concat else 96, 8, 8)]
    results, before = [], torch.get_num_threads()
    with enter("cpu"):
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(F.shuffle_unit(x, *parts, groups=8, stride=2 if concat else 1, concat=concat))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def _weights(branch: int, grad: bool = False) -> list[Tensor]:
    return [w.float().requires_grad_(grad) for w in weights(None, 8, 4, branch, 2, 2)]


@pytest.mark.parametrize("concat", [True, False], ids=["concat", "add"])
def test_registration(concat: bool) -> None:
    x, stride = torch.randn(2, 8, 7, 5, requires_grad=True), 2 if concat else 1
    args = (x, *_weights(6 if concat else 8, True), 2, [stride, stride], [1, 1], concat)
    opcheck(torch.ops.liteseg.shuffle_unit.default, args)


@pytest.mark.parametrize("concat", [True, False], ids=["concat", "add"])
def test_registration_of_backward(concat: bool) -> None:
    x = torch.randn(2, 8, 7, 5)
    grad, output = (torch.randn((2, 14, 4, 3) if concat else x.shape) for _ in range(2))
    stride = 2 if concat else 1
    for mask in ([True] * 7, [False, True, False, True, False, True, False]):
        args = (grad, x, *_weights(6 if concat else 8)[:5], output, 2, [stride, stride], [1, 1], concat, mask)
        opcheck(torch.ops.liteseg.shuffle_unit_backward.default, args, maps=(0, 1))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 8, 7, 5, requires_grad=True)
    check_double_backward_refused("shuffle_unit", F.shuffle_unit(x, *_weights(8), groups=2), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has five axes", ValueError, r"x: expected \[N, C, H, W\]", {"x": torch.randn(1, 8, 1, 7, 5)}),
    ("x is integer", TypeError, "x: expected dtype float32, .*got uint8", {"x": torch.ones(1, 8, 7, 5).byte()}),
    (
        "groups do not divide the input",
        ValueError,
        r"compress_weight: expected .*C_in=8 .*got \[4, 3, 1, 1\]",
        {"compress_weight": torch.randn(4, 3, 1, 1)},
    ),
    (
        "groups do not divide the bottleneck",
        ValueError,
        r"compress_weight: expected .*C_in=8 .*got \[6, 2, 1, 1\]",
        {"compress_weight": torch.randn(6, 2, 1, 1)},
    ),
    ("shuffle groups", ValueError, "groups: expected a divisor of the bottleneck 4, got 3", {"groups": 3}),
    ("no group", ValueError, "groups: expected a divisor of the bottleneck 4, got 0", {"groups": 0}),
    ("half a group", TypeError, "groups: expected an int, got 2.5", {"groups": 2.5}),
    ("compress bias", ValueError, r"compress_bias: expected \[4\], got \[5\]", {"compress_bias": torch.randn(5)}),
    (
        "kernel of 5",
        ValueError,
        r"depthwise_weight: expected \[4, 1, 3, 3\], got \[4, 1, 5, 5\]",
        {"depthwise_weight": torch.randn(4, 1, 5, 5)},
    ),
    ("bias missing", TypeError, "depthwise_bias: expected a tensor, got None", {"depthwise_bias": None}),
    (
        "expansion not grouped",
        ValueError,
        r"expand_weight: expected \[C_branch, 2, 1, 1\], got \[8, 4, 1, 1\]",
        {"expand_weight": torch.randn(8, 4, 1, 1)},
    ),
    (
        "branch not divisible",
        ValueError,
        "expand_weight: expected output channels divisible by 2, got 7",
        {"expand_weight": torch.randn(7, 2, 1, 1)},
    ),
    (
        "dtype mix",
        TypeError,
        "expand_bias: expected x's dtype float32, got bfloat16",
        {"expand_bias": torch.randn(8, dtype=torch.bfloat16)},
    ),
    (
        "device mix",
        ValueError,
        "compress_bias: expected x's device cpu, got meta",
        {"compress_bias": torch.randn(4, device="meta")},
    ),
    ("stride cannot be added", ValueError, r"concat: expected True .*got False with stride \(2, 2\)", {"stride": 2}),
    ("negative stride", ValueError, "stride: expected at least 1, got -2", {"stride": -2}),
    ("four dilations", ValueError, "dilation: expected an int or a pair of ints", {"dilation": (1, 1, 1, 1)}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {"x": torch.randn(1, 8, 7, 5), **dict(zip(NAMES, _weights(8), strict=True)), "groups": 2}
    check_wrong_input("shuffle_unit", arguments | change, error, text)
