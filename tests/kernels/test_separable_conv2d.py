"""separable_conv2d against depthwise and pointwise torch.nn.functional.conv2d in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

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
    rounded,
)

F = lk.functional
ACTIVATIONS: dict[str | None, Any] = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: tf.relu(z),
    "relu6": lambda z, slope: tf.relu6(z),
    "leaky_relu": tf.leaky_relu,
}


def oracle(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    **geometry: Any,
) -> Tensor:
    z = tf.conv2d(tf.conv2d(x, depthwise_weight, **geometry, groups=x.shape[1]), pointwise_weight, bias)
    return ACTIVATIONS[activation](z if residual is None else z + residual, negative_slope)


def case(
    name: str,
    n: int,
    c: int,
    h: int,
    w: int,
    out: int,
    kernel: int | tuple[int, int] = 3,
    *,
    bias: bool = True,
    residual: bool = False,
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", (kh - 1) // 2)

    def make(g: torch.Generator) -> dict[str, Any]:
        tensors: dict[str, Any] = {
            "x": randn(g, n, c, h, w),
            "depthwise_weight": randn(g, c, 1, kh, kw, scale=(kh * kw) ** -0.5),
            "pointwise_weight": randn(g, out, c, 1, 1, scale=c**-0.5),
            "bias": randn(g, out) if bias else None,
        }
        if residual:
            geometry = {k: v for k, v in options.items() if k in ("stride", "padding", "dilation")}
            shape = oracle(**tensors, **geometry).shape
            tensors["residual"] = randn(g, *shape)
        return tensors

    return Case(name, make, options, slow, wide)


CASES = [
    case("one pixel", 1, 3, 1, 1, 5),
    case("kernel larger than the map", 2, 5, 2, 1, 4, 5, activation="relu"),
    case("odd sizes, one channel", 2, 1, 7, 11, 3, activation="relu6"),
    case("31 channels, stride 2", 1, 31, 9, 11, 24, stride=2, activation="leaky_relu", negative_slope=0.1),
    case("dilation beyond the map", 1, 24, 6, 5, 7, dilation=9, padding=9),
    case("no padding, no bias", 2, 8, 7, 6, 9, padding=0, bias=False),
    case("k1 is a scale a channel", 1, 24, 5, 6, 19, 1),
    case("residual before the activation", 2, 8, 5, 6, 8, residual=True, activation="relu"),
    case("padding wider than the kernel", 1, 3, 4, 4, 2, padding=3),
    case("different in height and width", 1, 6, 8, 9, 5, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    case("96 to 31", 1, 96, 3, 4, 31, activation="relu", wide=True),
    case("384 to 24, stride 2", 1, 384, 3, 3, 24, stride=2, wide=True),
    case("batch 0", 0, 4, 5, 6, 3, activation="relu"),
    case("96 to 96, 63 x 65", 1, 96, 63, 65, 96, dilation=6, padding=6, activation="relu", slow=True),
    case("384 to 19, batch 3", 3, 384, 17, 13, 19, residual=True, activation="leaky_relu", slow=True),
    case("stride 3, 127 wide", 2, 33, 5, 127, 40, stride=3, activation="relu6", slow=True),
    # more tiles than the backward has parts, and a last part with fewer of them than the others
    case("parts of several tiles", 1, 3, 88, 89, 4, activation="relu", slow=True),
    case("1280 to 96, dilation 9", 1, 1280, 12, 20, 96, dilation=9, padding=9, slow=True),
]


@parametrise("separable_conv2d", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.separable_conv2d, oracle, world_name, case, maps=("x",))


@parametrise("separable_conv2d", CASES, also="separable_conv2d_backward")
def test_backward(world_name: str, case: Case) -> None:
    def before_activation(activation: str | None = None, **arguments: Any) -> Tensor:
        return oracle(**arguments)

    check_backward(F.separable_conv2d, oracle, world_name, case, maps=("x",), before_activation=before_activation)


CUTS = {
    "columns of a wider map": lambda t: t[..., 1:-2],
    "rows of a higher map": lambda t: t[:, :, 2:-1],
    "every second image": lambda t: t[::2],
    "channels of more": lambda t: t[:, 3:-2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CUTS)
def test_residuals_that_are_views(name: str, dtype: torch.dtype) -> None:
    """Channels innermost, as the kernel wants them, but rows or images that do not follow each other."""
    g = torch.Generator().manual_seed(0)
    around = randn(g, 4, 14, 8, 10).to(dtype).contiguous(memory_format=torch.channels_last)
    residual = CUTS[name](around)
    n, co, h, w = residual.shape
    tensors = {"x": randn(g, n, 5, h, w), "depthwise_weight": randn(g, 5, 1, 3, 3, scale=1 / 3)}
    shown = rounded(tensors | {"pointwise_weight": randn(g, co, 5, 1, 1), "residual": residual}, dtype)
    with enter("cpu"):
        given = {name: t.to(dtype) for name, t in shown.items()} | {"residual": residual}
        given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
        out = F.separable_conv2d(**given, padding=1, activation="relu")
    assert_near(out, oracle(**shown, padding=1, activation="relu"), dtype, name)


def test_the_kernel_refuses_other_dtypes() -> None:
    """Which Python hands to the reference."""
    with enter("cpu"), pytest.raises(RuntimeError, match="separable_conv2d: x: expected float32, float16 or bfloat16"):
        x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
        weights = torch.randn(2, 1, 1, 1).double(), torch.randn(2, 2, 1, 1).double()
        torch.ops.liteseg_cpu.separable_conv2d(x, *weights, None, None, [1, 1], [0, 0], [1, 1], 0, 0.0)


def test_small_calls_after_large_ones() -> None:
    """Memory of more than 16 MiB, here for the packed weights, is kept for the next large call, not for a small one."""
    large, small = case("large", 1, 400, 1, 2, 11000, 1), case("small", 1, 5, 3, 4, 6)
    with enter("cpu"):
        for given in (large, large, small, large):
            tensors = rounded(given.make(torch.Generator().manual_seed(0)), torch.float32)
            out = F.separable_conv2d(**{name: t.float() for name, t in tensors.items()}, **given.options)
            assert_near(out, oracle(**tensors, **given.options), torch.float32, given.name)


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_registration(activation: int) -> None:
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    weights = torch.randn(6, 1, 3, 3, requires_grad=True), torch.randn(5, 6, 1, 1, requires_grad=True)
    bias, residual = torch.randn(5, requires_grad=True), torch.randn(2, 5, 4, 4, requires_grad=True)
    args = (x, *weights, bias, residual, [2, 2], [1, 1], [1, 1], activation, 0.1)
    opcheck(torch.ops.liteseg.separable_conv2d.default, args)


@pytest.mark.parametrize("mask", [[True] * 5, [False, True, False, True, False]], ids=["all", "some"])
def test_registration_of_backward(mask: list[bool]) -> None:
    x, weights = torch.randn(2, 6, 7, 8), (torch.randn(6, 1, 3, 3), torch.randn(5, 6, 1, 1))
    grad, output = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    args = (grad, x, *weights, output, [2, 2], [1, 1], [1, 1], 1, 0.1, mask)
    opcheck(torch.ops.liteseg.separable_conv2d_backward.default, args, maps=(0, 1))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    out = F.separable_conv2d(x, torch.randn(6, 1, 3, 3), torch.randn(5, 6, 1, 1))
    check_double_backward_refused("separable_conv2d", out, x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[6, 7, 8\]", {"x": torch.randn(6, 7, 8)}),
    ("x is integer", TypeError, "x: expected dtype float32, .*got int64", {"x": torch.ones(1, 6, 7, 8, dtype=int)}),
    ("x is no tensor", TypeError, "x: expected a tensor, got list", {"x": [1.0]}),
    ("no channel", ValueError, "x: expected at least one channel", {"x": torch.randn(1, 0, 7, 8)}),
    ("empty map", ValueError, "x: expected height and width of at least 1", {"x": torch.randn(1, 6, 0, 8)}),
    (
        "depthwise shape",
        ValueError,
        r"depthwise_weight: expected \[6, 1, kh, kw\], got \[5, 1, 3, 3\]",
        {"depthwise_weight": torch.randn(5, 1, 3, 3)},
    ),
    (
        "dtype mix",
        TypeError,
        "pointwise_weight: expected x's dtype float32, got float64",
        {"pointwise_weight": torch.randn(5, 6, 1, 1).double()},
    ),
    (
        "device mix",
        ValueError,
        "pointwise_weight: expected x's device cpu, got meta",
        {"pointwise_weight": torch.randn(5, 6, 1, 1, device="meta")},
    ),
    ("bias shape", ValueError, r"bias: expected \[5\], got \[6\]", {"bias": torch.randn(6)}),
    ("residual shape", ValueError, r"residual: expected \[1, 5, 7, 8\]", {"residual": torch.randn(1, 5, 8, 8)}),
    ("zero stride", ValueError, "stride: expected at least 1, got 0", {"stride": 0}),
    ("negative padding", ValueError, "padding: expected at least 0, got -1", {"padding": -1}),
    ("float dilation", TypeError, "dilation: expected ints", {"dilation": (1.5, 1)}),
    ("three strides", ValueError, "stride: expected an int or a pair", {"stride": (1, 1, 1)}),
    ("kernel beyond the map", ValueError, "x: expected a height of at least the kernel's extent", {"dilation": 9}),
    ("activation", ValueError, "activation: expected None, 'relu'.*got 'gelu'", {"activation": "gelu"}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {
        "x": torch.randn(1, 6, 7, 8),
        "depthwise_weight": torch.randn(6, 1, 3, 3),
        "pointwise_weight": torch.randn(5, 6, 1, 1),
        "padding": 1,
    }
    check_wrong_input("separable_conv2d", arguments | change, error, text)
