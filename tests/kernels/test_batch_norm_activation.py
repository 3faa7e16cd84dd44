"""batch_norm_activation against torch.nn.functional.batch_norm, an addition and the activation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from .suite import (
    Case,
    as_layout,
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
ACTIVATIONS: dict[str | None, Any] = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: tf.relu(z),
    "relu6": lambda z, slope: tf.relu6(z),
    "leaky_relu": tf.leaky_relu,
}


def before_activation(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    **options: Any,
) -> Tensor:
    if x.numel():
        z = tf.batch_norm(x, None, None, weight, bias, True, 0.1, eps)
    else:
        z = x if weight is None or bias is None else x * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return z if residual is None else z + residual


def oracle(activation: str | None = None, negative_slope: float = 0.01, **arguments: Any) -> Tensor:
    return ACTIVATIONS[activation](before_activation(**arguments), negative_slope)


def case(
    name: str,
    *shape: int,
    affine: bool = True,
    residual: bool = False,
    slow: bool = False,
    shift: float = 0.0,
    **options: Any,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        channels = shape[1]
        tensors = {"x": 2.0 * randn(g, *shape) + shift * randn(g, 1, channels, 1, 1)}
        if affine:
            tensors |= {"weight": randn(g, channels), "bias": randn(g, channels)}
        return tensors | ({"residual": randn(g, *shape)} if residual else {})

    return Case(name, make, options, slow)


def maps(case: Case) -> tuple[str, ...]:
    return ("residual", "x") if "residual" in case.make(torch.Generator()) else ("x",)


CASES = [
    case("two pixels", 1, 3, 1, 2, eps=1.0, activation="relu"),
    case("one pixel of two images", 2, 5, 1, 1, eps=1.0, activation="relu"),
    case("one channel", 2, 1, 5, 7, activation="relu6"),
    case("24 channels", 2, 24, 5, 6, activation="relu"),
    case("31 channels, residual", 2, 31, 7, 3, activation="relu6", residual=True),
    case("96 channels, no affine", 1, 96, 3, 5, activation="leaky_relu", negative_slope=0.1, affine=False),
    case("residual, no activation", 2, 6, 4, 9, residual=True),
    case("large mean", 2, 4, 9, 8, shift=8.0, activation="relu"),
    case("large eps", 2, 4, 3, 3, eps=0.5, activation="relu"),
    case("empty batch", 0, 4, 3, 5, activation="relu"),
    case("MobileNetV2's at 176 x 65", 2, 96, 176, 65, activation="relu6", slow=True),
    case("384 channels, 127 wide", 1, 384, 3, 127, residual=True, activation="leaky_relu", slow=True),
    case("a column of 1000", 2, 33, 1000, 1, activation="relu", slow=True),
]


@parametrise("batch_norm_activation", CASES)
def test_forward(world_name: str, case: Case) -> None:
    # "expanded" repeats an image, which leaves the statistics as they are
    check_forward(F.batch_norm_activation, oracle, world_name, case, maps=maps(case))


# without an activation the sum of the results is constant: its gradient is rounding errors
@parametrise(
    "batch_norm_activation",
    [c for c in CASES if c.options.get("activation")],
    also="batch_norm_activation_backward",
)
def test_backward(world_name: str, case: Case) -> None:
    check_backward(
        *(F.batch_norm_activation, oracle, world_name, case),
        maps=maps(case),
        before_activation=before_activation,
    )


@parametrise(
    "batch_norm_activation",
    [c for c in CASES if not c.options.get("activation")],
    also="batch_norm_activation_backward",
)
def test_backward_without_activation(world_name: str, case: Case) -> None:
    given = case.make(torch.Generator().manual_seed(0))
    upstream = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with enter(world_name) as here:
        for dtype in here.dtypes:
            leaves = {k: v.to(dtype).double().requires_grad_() for k, v in given.items()}
            ours = {k: v.detach().to(here.device, dtype).requires_grad_() for k, v in leaves.items()}
            grad = upstream.to(dtype)
            out = F.batch_norm_activation(**ours, **case.options)
            expected = torch.autograd.grad(oracle(**leaves, **case.options), list(leaves.values()), grad.double())
            actual = torch.autograd.grad(out, list(ours.values()), grad.to(here.device))
            for name, got, want in zip(leaves, actual, expected, strict=True):
                assert_near(got, want, dtype, f"gradient of {name}", factor=2.0)


@parametrise("batch_norm_statistics", CASES)
def test_statistics(world_name: str, case: Case) -> None:
    x64 = case.make(torch.Generator().manual_seed(0))["x"] + 100.0
    with enter(world_name) as here:
        for dtype in here.dtypes:
            for layout in ("nchw", "channels_last", "sliced"):
                x = as_layout(x64.to(here.device, dtype), layout)
                shown = x.double().cpu()
                mean, squares = torch.ops.liteseg.batch_norm_statistics(x)
                limit = torch.float64 if dtype == torch.float64 else torch.float32
                if x.numel():
                    wanted = shown.var((0, 2, 3), correction=0) * (shown.numel() // shown.shape[1])
                    assert_near(mean, shown.mean((0, 2, 3)), limit, f"mean, {layout}")
                    assert_near(squares, wanted, limit, f"squares, {layout}", factor=4.0)
                else:
                    assert not mean.any() and not squares.any()


@parametrise("batch_norm_activation", CASES[3:4])
def test_running_statistics(world_name: str, case: Case) -> None:
    """As torch keeps them: the biased variance normalises, the unbiased one is remembered."""
    with enter(world_name) as here:
        x = case.make(torch.Generator().manual_seed(0))["x"].float().to(here.device)
        ours = torch.zeros(24, device=here.device), torch.ones(24, device=here.device)
        theirs = torch.zeros(24, device=here.device), torch.ones(24, device=here.device)
        for _ in range(3):
            F.batch_norm_activation(x, *ours, momentum=0.3)
            tf.batch_norm(x, *theirs, training=True, momentum=0.3)
        for got, want in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, want)


def test_wrong_input_leaves_the_running_statistics_alone() -> None:
    mean, var = torch.zeros(4), torch.ones(4)
    with pytest.raises(ValueError, match="residual: expected"):
        F.batch_norm_activation(torch.randn(2, 4, 3, 3), mean, var, residual=torch.randn(2, 4, 3, 2))
    with pytest.raises(ValueError, match="expected more than one value a channel"):
        F.batch_norm_activation(torch.randn(1, 4, 1, 1), mean, var)
    F.batch_norm_activation(torch.randn(0, 4, 3, 3), mean, var)
    assert not mean.any() and (var == 1).all()


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_registration(activation: int) -> None:
    x = torch.randn(2, 6, 4, 5, requires_grad=True)
    weight, bias = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    residual = torch.randn(2, 6, 4, 5, requires_grad=True)
    args = (x, torch.randn(6), torch.rand(6), weight, bias, residual, activation, 0.1, "")
    opcheck(torch.ops.liteseg.batch_norm_activation.default, args, maps=(0, 5))


def test_registration_of_the_rest() -> None:
    grad, x, residual = (torch.randn(2, 6, 4, 5) for _ in range(3))
    normaliser = torch.randn(6), torch.rand(6), torch.randn(6), None
    opcheck(torch.ops.liteseg.batch_norm_statistics.default, (x,))
    args = (grad, x, *normaliser, residual)
    opcheck(torch.ops.liteseg.batch_norm_activation_backward_reduce.default, (*args, 2, 0.0), maps=(0, 1))
    means = torch.randn(6), torch.randn(6)
    for mask in ([True, True], [False, True], [True, False]):
        opcheck(torch.ops.liteseg.batch_norm_activation_backward.default, (*args, *means, 2, 0.0, mask), maps=(0, 1))
    nothing = torch.ops.liteseg.batch_norm_activation_backward(*args, *means, 2, 0.0, [False, False])
    assert [gradient.numel() for gradient in nothing] == [0, 0]


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    check_double_backward_refused("batch_norm_activation", F.batch_norm_activation(x, activation="relu"), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[6, 7, 8\]", {"x": torch.randn(6, 7, 8)}),
    ("x is integer", TypeError, "x: expected dtype float32, .*got int64", {"x": torch.ones(1, 6, 7, 8, dtype=int)}),
    ("x is no tensor", TypeError, "x: expected a tensor, got list", {"x": [1.0]}),
    ("weight shape", ValueError, r"weight: expected \[6\], got \[5\]", {"weight": torch.randn(5)}),
    ("running shape", ValueError, r"running_mean: expected \[6\], got \[5\]", {"running_mean": torch.zeros(5)}),
    ("device mix", ValueError, "bias: expected x's device cpu, got meta", {"bias": torch.randn(6, device="meta")}),
    ("residual shape", ValueError, r"residual: expected \[2, 6, 7, 8\]", {"residual": torch.randn(2, 6, 8, 8)}),
    ("residual dtype", TypeError, "residual: expected x's dtype float32", {"residual": torch.randn(2, 6, 7, 8).half()}),
    ("momentum", TypeError, "momentum: expected a number, got None", {"momentum": None}),
    ("activation", ValueError, "activation: expected None, 'relu'.*got 'gelu'", {"activation": "gelu"}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    check_wrong_input("batch_norm_activation", {"x": torch.randn(2, 6, 7, 8)} | change, error, text)
