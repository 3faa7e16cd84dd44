"""daspp against the branches, their concatenation and its projection, each a torch.nn.functional.conv2d in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from tests.worlds import find

from .suite import (
    Case,
    check_backward,
    check_double_backward_refused,
    check_forward,
    check_wrong_input,
    enter,
    inputs,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional


def before_activation(
    x: Tensor,
    atrous: Sequence[Sequence[Tensor]],
    pool: Sequence[Tensor],
    project: Sequence[Tensor],
    rates: Sequence[int],
    deep: Sequence[Sequence[Tensor]] = (),
    direct_weight: Tensor | None = None,
    point: Sequence[Tensor] | None = None,
) -> Tensor:
    maps, weights = [], []
    if direct_weight is not None:
        maps.append(x)
        weights.append(direct_weight)
    if point is not None:
        maps.append(tf.relu(tf.conv2d(x, point[0], point[1])))
    for index, (depthwise, pointwise, bias) in enumerate(atrous):
        rate = rates[index]
        branch = tf.conv2d(x, depthwise, None, 1, rate, rate, x.shape[1])
        branch = tf.conv2d(branch, pointwise, bias)
        if deep:
            depthwise, pointwise, bias = deep[index]
            branch = tf.conv2d(tf.conv2d(branch, depthwise, None, 1, 1, 1, branch.shape[1]), pointwise, bias)
        maps.append(tf.relu(branch))
    pooled = tf.relu(tf.conv2d(x.mean((2, 3), keepdim=True), *pool))
    maps.append(pooled.expand(-1, -1, *x.shape[2:]))
    return tf.conv2d(torch.cat(maps, 1), torch.cat((*weights, project[0]), 1), project[1])


def oracle(**arguments: Any) -> Tensor:
    return tf.relu(before_activation(**arguments))


def tensors(
    g: torch.Generator, c: int, filters: int, out: int, rates: int, deeper: bool, direct: bool, point: bool
) -> dict[str, Any]:
    def separable(channels: int) -> list[Tensor]:
        return [
            randn(g, channels, 1, 3, 3, scale=1 / 3),
            randn(g, filters, channels, 1, 1, scale=channels**-0.5),
            randn(g, filters),
        ]

    maps = rates + 1 + point
    return {
        "atrous": [separable(c) for _ in range(rates)],
        "deep": [separable(filters) for _ in range(rates if deeper else 0)],
        "direct_weight": randn(g, out, c, 1, 1, scale=c**-0.5) if direct else None,
        "point": [randn(g, filters, c, 1, 1, scale=c**-0.5), randn(g, filters)] if point else None,
        "pool": [randn(g, filters, c, 1, 1, scale=c**-0.5), randn(g, filters)],
        "project": [randn(g, out, maps * filters, 1, 1, scale=(maps * filters) ** -0.5), randn(g, out)],
    }


def case(
    name: str,
    n: int,
    c: int,
    h: int,
    w: int,
    filters: int,
    rates: tuple[int, ...],
    *,
    out: int | None = None,
    deeper: bool = True,
    direct: bool = True,
    point: bool = False,
    slow: bool = False,
    wide: bool = False,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        weights = tensors(g, c, filters, out or filters, len(rates), deeper, direct, point)
        return {"x": randn(g, n, c, h, w), **weights}

    return Case(name, make, {"rates": rates}, slow, wide)


CASES = [
    case("one pixel", 1, 3, 1, 1, 2, (3, 6, 9)),
    case("one channel, one rate", 2, 1, 3, 4, 3, (2,)),
    case("deeper with the input", 2, 4, 5, 6, 3, (1, 3)),
    case("deeper without the input", 1, 4, 4, 5, 3, (3, 6, 9), direct=False),
    case("deeper with a 1x1 branch", 1, 3, 4, 3, 2, (2, 3), point=True),
    case("plain with the input and a 1x1 branch", 2, 4, 4, 5, 3, (3, 6), deeper=False, point=True),
    case("plain alone", 1, 3, 5, 4, 4, (1, 2, 3, 4), deeper=False, direct=False),
    case("rates beyond the map, other output channels", 1, 5, 3, 4, 4, (9, 20), out=7),
    case("31 channels", 1, 31, 3, 3, 5, (2,)),
    case("deeper at five rates", 1, 2, 3, 4, 2, (1, 2, 3, 4, 5)),
    case("24 channels and filters", 1, 24, 2, 2, 24, (2,), wide=True),
    case("96 channels", 1, 96, 1, 3, 3, (1,), wide=True),
    case("384 channels", 1, 384, 1, 2, 3, (1,), deeper=False, wide=True),
    case("batch 0", 0, 4, 5, 6, 3, (3, 6)),
    case("LiteSeg's at 12 x 20", 1, 320, 12, 20, 96, (3, 6, 9), slow=True),
    case("ASPP, 31 x 33, batch 2", 2, 96, 31, 33, 24, (6, 12, 18), deeper=False, point=True, direct=False, slow=True),
    case("384 channels, 5 x 63", 1, 384, 5, 63, 96, (3, 6, 9, 12), slow=True),
]


@parametrise("daspp", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.daspp, oracle, world_name, case, maps=("x",))


@parametrise("daspp", CASES, also="daspp_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(F.daspp, oracle, world_name, case, maps=("x",), before_activation=before_activation)


def test_gradients_that_nearly_cancel() -> None:
    # each further rounding of the maps between them costs a digit: an H200 was 0.034 off, with a limit of 0.032
    rates = next(case for case in CASES if case.name == "deeper at five rates")
    check_backward(
        F.daspp, oracle, "interpreter", rates, maps=("x",), layouts=("nchw",), dtypes=(torch.bfloat16,),
        before_activation=before_activation, factor=1.0,
    )  # fmt: skip


def test_threads_do_not_change_the_result() -> None:
    # enough work for several pieces of every pass
    made = case("", 2, 192, 33, 30, 40, (3, 6), out=48, point=True).make(torch.Generator().manual_seed(0))
    given = inputs(made, find("cpu"), torch.float32, "nchw", ("x",), grad=False)
    results, before = [], torch.get_num_threads()
    with enter("cpu"):
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(F.daspp(**given, rates=(3, 6)))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def _small(grad: bool = False, **options: bool) -> dict[str, Any]:
    settings = {"deeper": True, "direct": True, "point": False} | options
    made = tensors(torch.Generator().manual_seed(0), 4, 3, 5, 2, **settings)

    def change(value: Any) -> Any:
        if isinstance(value, list):
            return [change(v) for v in value]
        return None if value is None else value.float().requires_grad_(grad)

    return {name: change(value) for name, value in made.items()}


def _arguments(weights: dict[str, Any]) -> list[Any]:
    """The op's own arguments between x and the rates."""
    columns = [[branch[i] for branch in weights[name]] for name in ("atrous", "deep") for i in range(3)]
    return [
        weights["direct_weight"],
        *(weights["point"] or (None, None)),
        *columns,
        *weights["pool"],
        *weights["project"],
    ]


VARIANTS = {
    "deeper": {},
    "plain": {"deeper": False, "direct": False, "point": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_registration(variant: str) -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    args = (x, *_arguments(_small(True, **VARIANTS[variant])), [2, 3])
    opcheck(torch.ops.liteseg.daspp.default, args)


@pytest.mark.parametrize("variant", VARIANTS)
def test_registration_of_backward(variant: str) -> None:
    x, grad, output = torch.randn(2, 4, 5, 6), torch.randn(2, 5, 5, 6), torch.randn(2, 5, 5, 6)
    args = (grad, x, *_arguments(_small(**VARIANTS[variant]))[:-1], output, [2, 3])
    opcheck(torch.ops.liteseg.daspp_backward.default, args, maps=(0, 1))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    check_double_backward_refused("daspp", F.daspp(x, rates=(2, 3), **_small()), x)


def _replaced(name: str, index: tuple[int, ...], value: Any) -> dict[str, Any]:
    """The small weights of `name` with the one at `index` replaced."""
    weights = _small()[name]
    holder = weights
    for i in index[:-1]:
        holder = holder[i]
    holder[index[-1]] = value
    return {name: weights}


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has two axes", ValueError, r"x: expected \[N, C, H, W\], got \[4, 5\]", {"x": torch.randn(4, 5)}),
    ("x is integer", TypeError, "x: expected dtype float32, .*got int64", {"x": torch.ones(1, 4, 5, 6, dtype=int)}),
    ("no rate", ValueError, "rates: expected one or more rates of at least 1, got", {"rates": ()}),
    ("negative rate", ValueError, "rates: expected one or more rates of at least 1, got", {"rates": (2, -3)}),
    ("rate is no int", TypeError, "rates: expected an int, got 2.5", {"rates": (2.5, 3)}),
    ("rates are one int", TypeError, "rates: expected a list or tuple, got int", {"rates": 3}),
    ("a rate too many", ValueError, "atrous: expected 3 weights of each kind, one a rate, got", {"rates": (1, 2, 3)}),
    (
        "atrous without a bias",
        ValueError,
        r"atrous: expected \(depthwise, pointwise, bias\) a rate, got \[2, 2\]",
        {"atrous": [branch[:2] for branch in _small()["atrous"]]},
    ),
    (
        "atrous is a tensor",
        TypeError,
        "atrous: expected a list or tuple, got (Fake)?Tensor",
        {"atrous": torch.randn(2, 3)},
    ),
    (
        "atrous kernel",
        ValueError,
        r"atrous_depthwise\[1\]: expected \[4, 1, 3, 3\], got \[4, 1, 1, 1\]",
        _replaced("atrous", (1, 0), torch.randn(4, 1, 1, 1)),
    ),
    (
        "atrous filters",
        ValueError,
        r"atrous_pointwise\[0\]: expected \[3, 4, 1, 1\], got \[2, 4, 1, 1\]",
        _replaced("atrous", (0, 1), torch.randn(2, 4, 1, 1)),
    ),
    (
        "deep of another dtype",
        TypeError,
        r"deep_bias\[0\]: expected x's dtype float32, got float64",
        _replaced("deep", (0, 2), torch.randn(3).double()),
    ),
    ("an array", TypeError, r"atrous\[1\]\[0\]: expected a tensor, got list", _replaced("atrous", (1, 0), [0.0])),
    ("no bias", TypeError, "project_bias: expected a tensor, got NoneType", _replaced("project", (1,), None)),
    ("one deep branch of two", ValueError, "deep: expected 2 weights of each kind", {"deep": _small()["deep"][:1]}),
    (
        "pool from other channels",
        ValueError,
        r"pool_weight: expected \[filters, 4, 1, 1\], got \[3, 5, 1, 1\]",
        _replaced("pool", (0,), torch.randn(3, 5, 1, 1)),
    ),
    ("pool without a bias", ValueError, r"pool: expected \(weight, bias\), got 1", {"pool": _small()["pool"][:1]}),
    (
        "point bias is None",
        ValueError,
        "point_bias: expected a tensor just where point_weight is one",
        {"point": (torch.randn(3, 4, 1, 1), None)},
    ),
    (
        "projection of other maps",
        ValueError,
        r"project_weight: expected \[C_out, 9, 1, 1\], got \[5, 12, 1, 1\]",
        _replaced("project", (0,), torch.randn(5, 12, 1, 1)),
    ),
    (
        "projection on another device",
        ValueError,
        "project_bias: expected x's device cpu, got meta",
        _replaced("project", (1,), torch.randn(5, device="meta")),
    ),
    (
        "direct weight",
        ValueError,
        r"direct_weight: expected \[5, 4, 1, 1\], got \[3, 4, 1, 1\]",
        {"direct_weight": torch.randn(3, 4, 1, 1)},
    ),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {"x": torch.randn(1, 4, 5, 6), "rates": (2, 3), **_small()}
    check_wrong_input("daspp", arguments | change, error, text)
