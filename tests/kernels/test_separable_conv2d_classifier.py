"""separable_conv2d_classifier against three conv2d of torch.nn.functional and an activation in float64."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from tests.worlds import find

from . import test_separable_conv2d
from .suite import (
    Case,
    check_backward,
    check_forward,
    check_wrong_input,
    enter,
    lk,
    opcheck,
    parametrise,
    randn,
)

F = lk.functional
OP = "separable_conv2d_classifier"


def oracle(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    classifier_weight: Tensor,
    classifier_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    hidden = test_separable_conv2d.oracle(x, depthwise_weight, pointwise_weight, bias, **options)
    return tf.conv2d(hidden, classifier_weight, classifier_bias)


def case(
    name: str,
    n: int,
    c: int,
    h: int,
    w: int,
    hidden: int,
    classes: int,
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
            "x": randn(g, n, c, h, w),
            "depthwise_weight": randn(g, c, 1, kh, kw, scale=(kh * kw) ** -0.5),
            "pointwise_weight": randn(g, hidden, c, 1, 1, scale=c**-0.5),
            "bias": randn(g, hidden) if bias else None,
            "classifier_weight": randn(g, classes, hidden, 1, 1, scale=hidden**-0.5),
            "classifier_bias": randn(g, classes) if bias else None,
        }

    return Case(name, make, options, slow, wide)


CASES = [
    case("one pixel, one class", 1, 3, 1, 1, 5, 1),
    case("kernel larger than the map", 2, 5, 2, 1, 4, 3, 5, activation="relu"),
    case("odd sizes, one channel", 2, 1, 7, 11, 3, 19, activation="relu6"),
    case("31 channels to 33, stride 2", 1, 31, 9, 11, 33, 11, stride=2, activation="leaky_relu", negative_slope=0.1),
    case("dilation beyond the map", 1, 24, 6, 5, 7, 2, dilation=9, padding=9),
    case("no padding, no biases", 2, 8, 7, 6, 9, 4, padding=0, bias=False, activation="relu"),
    case("k1 is a scale a channel", 1, 24, 5, 6, 19, 21, 1),
    case("different in height and width", 1, 6, 8, 9, 5, 7, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    case("more hidden channels than a pass takes", 1, 8, 9, 10, 130, 17, activation="relu"),
    case("96 to 96 to 19", 1, 96, 3, 4, 96, 19, activation="relu", wide=True),
    case("150 classes", 1, 16, 3, 3, 40, 150, activation="relu", wide=True),
    case("batch 0", 0, 4, 5, 6, 3, 2, activation="relu"),
    case("96 to 96 to 19, 63 x 65", 1, 96, 63, 65, 96, 19, activation="relu", slow=True),
    case("384 to 256 to 150, batch 3", 3, 384, 17, 13, 256, 150, activation="leaky_relu", slow=True),
    case("384 to 256 to 19, batch 3", 3, 384, 17, 13, 256, 19, activation="leaky_relu", slow=True),
]


@parametrise(OP, CASES)
def test_forward(world_name: str, case: Case) -> None:
    if world_name == "gpu-cuda" and case.name.startswith("384 to 256 to 150"):
        pytest.skip("more than shared memory holds: test_the_classifier_has_to_fit_shared_memory")
    check_forward(F.separable_conv2d_classifier, oracle, world_name, case, maps=("x",))


# the backward is made of others that have tests of their own. In half types a rounded hidden value may lie on another
# side of its kink than the oracle's
@parametrise(OP, [c for c in CASES if not (c.slow or c.wide)], also="separable_conv2d_backward")
def test_backward(world_name: str, case: Case) -> None:
    kink = case.options.get("activation") is not None
    check_backward(
        *(F.separable_conv2d_classifier, oracle, world_name, case),
        maps=("x",),
        dtypes=(torch.float32,) if kink else None,
    )


def _arguments() -> tuple[Tensor, ...]:
    shapes = ((2, 6, 7, 8), (6, 1, 3, 3), (5, 6, 1, 1), (5,), (3, 5, 1, 1), (3,))
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_registration(activation: int) -> None:
    args = (*_arguments(), [2, 2], [1, 1], [1, 1], activation, 0.1)
    opcheck(torch.ops.liteseg.separable_conv2d_classifier.default, args)


@pytest.mark.parametrize("wanted", [(0,), (1, 3), (4,), (5,), (2, 5)], ids=str)
def test_gradients_not_asked_for(wanted: tuple[int, ...]) -> None:
    given = _arguments()
    options = {"padding": 1, "activation": "relu"}
    exact = torch.autograd.grad(oracle(*given, **options).sum(), [given[i] for i in wanted])
    for index, leaf in enumerate(given):
        leaf.requires_grad_(index in wanted)
    found = torch.autograd.grad(F.separable_conv2d_classifier(*given, **options).sum(), [given[i] for i in wanted])
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_double_backward_is_refused() -> None:
    x, *rest = _arguments()
    (grad,) = torch.autograd.grad(F.separable_conv2d_classifier(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="separable_conv2d_backward: double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("classes", [19, 150])
def test_the_classifier_has_to_fit_shared_memory(classes: int) -> None:
    # 150 of them failed on a real GPU where the kernel should not have been asked
    x, *weights = torch.zeros(1, 8, 4, 4), torch.zeros(8, 1, 3, 3), torch.zeros(256, 8, 1, 1), None
    classifier = torch.zeros(classes, 256, 1, 1)
    limits = importlib.import_module("liteseg_kernels.ops.separable_conv2d_classifier")._cuda_limits
    reason = limits(x, *weights, classifier, None, [1, 1], [1, 1], [1, 1], 0, 0.0)
    fits = "256 hidden channels and 150 classes do not fit 166912 B of shared memory"
    assert reason == (fits if classes == 150 else None)


def test_explain_tells_one_kernel_from_two() -> None:
    arguments = {k: v.float() for k, v in CASES[2].make(torch.Generator()).items()}
    for world_name, backend in (("cpu", "cpu"), ("interpreter", "triton"), ("emulator", "cuda")):
        if find(world_name).available:
            with enter(world_name):
                answer = lk.explain(OP, **arguments)
            note = "" if backend == "cuda" else "as separable_conv2d, then conv2d"
            assert (answer.backend, answer.note) == (backend, note)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[6, 7, 8\]", {"x": torch.randn(6, 7, 8)}),
    ("no classifier", TypeError, "classifier_weight: expected a tensor, got NoneType", {"classifier_weight": None}),
    (
        "classifier of another width",
        ValueError,
        r"classifier_weight: expected \[K, 5, 1, 1\], got \[3, 6, 1, 1\]",
        {"classifier_weight": torch.randn(3, 6, 1, 1)},
    ),
    (
        "classifier 3 x 3",
        ValueError,
        r"classifier_weight: expected \[K, 5, 1, 1\], got \[3, 5, 3, 3\]",
        {"classifier_weight": torch.randn(3, 5, 3, 3)},
    ),
    ("classifier bias", ValueError, r"classifier_bias: expected \[3\], got \[5\]", {"classifier_bias": torch.randn(5)}),
    ("bias shape", ValueError, r"bias: expected \[5\], got \[6\]", {"bias": torch.randn(6)}),
    (
        "dtype mix",
        TypeError,
        "classifier_weight: expected x's dtype float32, got float16",
        {"classifier_weight": torch.randn(3, 5, 1, 1).half()},
    ),
    (
        "pointwise shape",
        ValueError,
        r"pointwise_weight: expected \[C_hidden, 6, 1, 1\], got \[5, 4, 1, 1\]",
        {"pointwise_weight": torch.randn(5, 4, 1, 1)},
    ),
    ("activation", ValueError, "activation: expected None, 'relu'.*got 'gelu'", {"activation": "gelu"}),
    ("zero stride", ValueError, "stride: expected at least 1, got 0", {"stride": 0}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    names = ("x", "depthwise_weight", "pointwise_weight", "bias", "classifier_weight", "classifier_bias")
    arguments = dict(zip(names, (t.detach() for t in _arguments()), strict=True))
    check_wrong_input(OP, arguments | change, error, text)
