"""upsample_cross_entropy against interpolate and cross_entropy of torch.nn.functional in float64."""

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
)

F = lk.functional
REDUCTIONS = ("mean", "sum", "sum_per_image", "none")


def op(logits: Tensor, target: Tensor, class_weights: tuple[float, ...] | None = None, **options: Any) -> Tensor:
    weight = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    return F.upsample_cross_entropy(logits, target, weight=weight, **options)


def oracle(
    logits: Tensor,
    target: Tensor,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int = 255,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = True,
) -> Tensor:
    up = tf.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    loss = tf.cross_entropy(
        up,
        target.long(),
        weight,
        ignore_index=ignore_index,
        reduction="sum" if reduction == "sum_per_image" else reduction,
        label_smoothing=label_smoothing,
    )
    return loss / max(logits.shape[0], 1) if reduction == "sum_per_image" else loss


def compare(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    # half logits are widened first, so the loss is as exact as that of float32 logits
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    assert actual.dtype == computed, what
    # the exponential and the logarithm of a float32 each add about as much as one rounding
    assert_near(actual, expected, computed, what, 2.0)


def targets(
    g: torch.Generator, shape: tuple[int, ...], classes: int, dtype: torch.dtype, ignored: int | None
) -> Tensor:
    target = torch.randint(classes, shape, generator=g).to(dtype)
    if ignored is not None:
        target[torch.rand(shape, generator=g) < 0.3] = ignored
        # one image without a valid pixel beside one with some
        target[1:2] = ignored
    return target


def case(
    name: str,
    n: int,
    k: int,
    size: tuple[int, int],
    to: tuple[int, int],
    *,
    dtype: torch.dtype = torch.int64,
    ignored: int | None = 255,
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        return {"logits": randn(g, n, k, *size, scale=3.0), "target": targets(g, (n, *to), k, dtype, ignored)}

    return Case(name, make, {"ignore_index": 255 if ignored is None else ignored, **options}, slow, wide)


CASES = [
    case("one pixel", 1, 2, (1, 1), (1, 1), ignored=None),
    case("one class", 1, 1, (2, 3), (3, 4), ignored=None),
    case("mean, 19 classes, uint8", 2, 19, (2, 3), (5, 7), dtype=torch.uint8),
    case("sum, half-pixel, int32", 2, 11, (3, 2), (7, 5), dtype=torch.int32, reduction="sum", align_corners=False),
    case("sum per image, ignored -100", 3, 4, (2, 3), (4, 6), ignored=-100, reduction="sum_per_image"),
    case("a class is ignored", 2, 5, (2, 3), (5, 4), ignored=3, reduction="mean"),
    case("a loss a pixel", 2, 3, (3, 4), (5, 9), reduction="none"),
    case("class weights, one of them 0", 2, 3, (2, 3), (5, 4), class_weights=(0.5, 0.0, 4.0)),
    case(
        "class weights, sum, ignored class",
        2,
        3,
        (2, 3),
        (5, 4),
        ignored=1,
        class_weights=(0.5, 2.0, 4.0),
        reduction="sum",
    ),
    case("smoothed", 2, 5, (2, 3), (5, 4), label_smoothing=0.1),
    case("smoothed to the end, a loss a pixel", 1, 5, (2, 3), (5, 4), label_smoothing=1.0, reduction="none"),
    case("smoothed with class weights", 2, 3, (2, 3), (4, 5), label_smoothing=0.25, class_weights=(0.5, 2.0, 4.0)),
    case(
        *("smoothed with class weights, a loss a pixel", 2, 3, (2, 3), (4, 5)),
        **{"label_smoothing": 0.25, "class_weights": (0.5, 2.0, 4.0), "reduction": "none", "align_corners": False},
    ),
    case("same size", 1, 4, (4, 5), (4, 5)),
    case("smaller", 1, 4, (9, 7), (4, 3), reduction="sum"),
    case("smaller, half-pixel", 1, 4, (9, 7), (4, 3), reduction="sum", align_corners=False),
    # some vectors of pixels read no more columns than a vector holds, the ones beside them do
    case("hardly larger", 1, 3, (2, 50), (3, 51), slow=True),
    case("one pixel to a map", 1, 4, (1, 1), (4, 5), ignored=None),
    case("31 classes", 1, 31, (2, 2), (3, 5), reduction="sum"),
    case("24 classes", 1, 24, (2, 2), (3, 4), wide=True),
    case("96 classes", 1, 96, (1, 2), (2, 3), reduction="sum", wide=True),
    case("384 classes", 1, 384, (1, 1), (1, 2), reduction="sum", ignored=None, wide=True),
    case("batch 0, sum", 0, 4, (2, 3), (4, 5), ignored=None, reduction="sum"),
    case("batch 0, a loss a pixel", 0, 4, (2, 3), (4, 5), ignored=None, reduction="none"),
    case("19 classes to 120 x 127", 2, 19, (15, 16), (120, 127), dtype=torch.uint8, slow=True),
    case("300 classes to 33 x 31", 1, 300, (8, 9), (33, 31), reduction="sum_per_image", slow=True),
    case("96 classes, half-pixel", 1, 96, (8, 9), (63, 65), reduction="none", slow=True, align_corners=False),
]


def _op(case: Case) -> str:
    return "upsample_cross_entropy_map" if case.options.get("reduction") == "none" else "upsample_cross_entropy"


def _rows(*, also: str | None = None) -> Any:
    """As `parametrise`, each case on the backends of the op that its reduction runs."""
    marks = [
        parametrise(name, [c for c in CASES if _op(c) == name], also=also)
        for name in ("upsample_cross_entropy", "upsample_cross_entropy_map")
    ]
    return pytest.mark.parametrize(("world_name", "case"), [row for mark in marks for row in mark.args[1]])


@_rows()
def test_forward(world_name: str, case: Case) -> None:
    check_forward(op, oracle, world_name, case, maps=("logits", "target"), compare=compare)


@_rows(also="upsample_cross_entropy_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(op, oracle, world_name, case, maps=("logits", "target"))


ONCE = [Case("once", lambda g: {}, {})]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@parametrise("upsample_cross_entropy", ONCE)
def test_nothing_valid_costs_nothing(world_name: str, case: Case, smoothing: float) -> None:
    # user_pains M3: a crop of void pixels makes torch's mean NaN
    with enter(world_name) as here:
        for dtype in here.dtypes:
            for reduction in REDUCTIONS[:3]:
                logits = torch.randn(2, 3, 2, 3).to(here.device, dtype).requires_grad_()
                target = torch.full((2, 4, 5), 255, dtype=torch.uint8, device=here.device)
                loss = F.upsample_cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
                loss.backward()
                assert loss.item() == 0.0, (dtype, reduction)
                assert logits.grad is not None and not logits.grad.any(), (dtype, reduction)


def test_a_valid_batch_of_weight_zero_costs_nothing() -> None:
    logits = torch.randn(1, 2, 2, 3, requires_grad=True)
    loss = F.upsample_cross_entropy(logits, torch.zeros(1, 4, 5, dtype=int), weight=torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and not logits.grad.any()


def test_mean_of_an_empty_batch_is_zero() -> None:
    assert F.upsample_cross_entropy(torch.randn(0, 4, 2, 3), torch.zeros(0, 4, 5, dtype=int)).item() == 0.0


@parametrise("upsample_cross_entropy", ONCE)
def test_huge_logits_stay_finite(world_name: str, case: Case) -> None:
    with enter(world_name) as here:
        logits = torch.tensor([3e4, -3e4, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).to(here.device).requires_grad_()
        loss = F.upsample_cross_entropy(logits, torch.ones(1, 3, 3, dtype=torch.int64, device=here.device))
        loss.backward()
        assert loss.item() == 6e4
        assert logits.grad is not None and logits.grad.isfinite().all()


@parametrise("upsample_cross_entropy", ONCE)
def test_a_logit_that_is_not_a_number_makes_the_loss_nan(world_name: str, case: Case) -> None:
    with enter(world_name) as here:
        for dtype in here.dtypes:
            logits = torch.randn(2, 3, 4, 5).to(here.device, dtype)
            logits[1, 2, 3, 4] = float("nan")
            target = torch.zeros(2, 4, 5, dtype=torch.int64, device=here.device)
            losses = F.upsample_cross_entropy(logits, target, reduction="none")
            assert losses[0].isfinite().all() and losses[1, 3, 4].isnan(), dtype


@pytest.mark.parametrize("found", [19, -1, 254, -100])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ids_that_are_no_class_are_named(reduction: str, found: int) -> None:
    target = torch.zeros(1, 4, 5, dtype=torch.int64)
    target[0, 2, 3] = found
    target[0, 0, 0] = 255
    with pytest.raises(ValueError, match=rf"target: expected classes 0..18 or ignore_index 255, got \[{found}\]"):
        F.upsample_cross_entropy(torch.randn(1, 19, 2, 3), target, reduction=reduction)


@pytest.mark.parametrize("found", [3, -1])
def test_ids_that_are_no_class_make_the_kernel_say_nan(found: int) -> None:
    """Where Python does not look, as on a GPU: the loss of that pixel, and the gradient of all that it reads."""
    with enter("cpu"):
        g = torch.Generator().manual_seed(0)
        logits, target = randn(g, 1, 3, 2, 3).float(), torch.randint(3, (1, 4, 5), generator=g)
        target[0, 0, 0] = found
        options = (None, 255, 0.0, True)
        losses = torch.ops.liteseg_cpu.upsample_cross_entropy_map(logits, target, *options)
        assert losses[0, 0, 0].isnan() and losses.isnan().sum() == 1
        grad = torch.ops.liteseg_cpu.upsample_cross_entropy_backward(torch.ones(1), logits, target, *options)
        assert grad[0, :, 0, 0].isnan().all() and grad[0, :, :, 2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2,), (2, 7, 8)], ids=["a factor an image", "a factor a pixel"])
def test_factors_of_any_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with enter("cpu"):
        g = torch.Generator().manual_seed(0)
        logits, target = randn(g, 2, 3, 4, 5).float(), targets(g, (2, 7, 8), 3, torch.int64, 255)
        scale = torch.rand(shape, generator=g).to(dtype)
        grad = torch.ops.liteseg_cpu.upsample_cross_entropy_backward(scale, logits, target, None, 255, 0.1, False)
        leaf = logits.double().requires_grad_()
        losses = oracle(leaf, target, reduction="none", label_smoothing=0.1, align_corners=False)
        (losses * scale.double().view(*shape, *(1,) * (3 - len(shape)))).sum().backward()
        assert_near(grad, leaf.grad, torch.float32, str(dtype), 2.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["upsample_cross_entropy", "upsample_cross_entropy_map"])
def test_registration(name: str, smoothing: float) -> None:
    args = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(3, (2, 7, 8)), torch.rand(3), 2, smoothing, True
    opcheck(getattr(torch.ops.liteseg, name).default, args)


@pytest.mark.parametrize("shape", [(2,), (2, 7, 8)], ids=["a factor an image", "a factor a pixel"])
def test_registration_of_backward(shape: tuple[int, ...]) -> None:
    args = torch.rand(shape), torch.randn(2, 3, 4, 5), torch.randint(3, (2, 7, 8)), None, 255, 0.1, False
    opcheck(torch.ops.liteseg.upsample_cross_entropy_backward.default, args, maps=(0, 1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_double_backward_is_refused(reduction: str) -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = F.upsample_cross_entropy(logits, torch.randint(3, (2, 7, 8)), reduction=reduction)
    check_double_backward_refused("upsample_cross_entropy", loss, logits)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("three axes", ValueError, r"logits: expected \[N, C, H, W\], got \[3, 4, 5\]", {"logits": torch.randn(3, 4, 5)}),
    ("no class", ValueError, "logits: expected at least one channel", {"logits": torch.randn(2, 0, 4, 5)}),
    (
        "target of four axes",
        ValueError,
        r"target: expected \[2, H, W\], got \[2, 1, 7, 8\]",
        {"target": torch.zeros(2, 1, 7, 8, dtype=int)},
    ),
    (
        "batches",
        ValueError,
        r"target: expected \[2, H, W\], got \[1, 7, 8\]",
        {"target": torch.zeros(1, 7, 8, dtype=int)},
    ),
    (
        "empty target",
        ValueError,
        r"target: expected \[2, H, W\], got \[2, 0, 8\]",
        {"target": torch.zeros(2, 0, 8).long()},
    ),
    (
        "floating target",
        TypeError,
        "target: expected dtype int64, int32, uint8, got float32",
        {"target": torch.zeros(2, 7, 8)},
    ),
    ("no tensor", TypeError, "target: expected a tensor, got list", {"target": [[0]]}),
    (
        "target elsewhere",
        ValueError,
        "target: expected .* cpu, got meta",
        {"target": torch.zeros(2, 7, 8, device="meta").long()},
    ),
    ("weights", ValueError, r"weight: expected \[3\], got \[4\]", {"weight": torch.rand(4)}),
    ("integer weights", TypeError, "weight: expected dtype float32", {"weight": torch.ones(3, dtype=int)}),
    ("weights elsewhere", ValueError, "weight: expected .* cpu, got meta", {"weight": torch.rand(3, device="meta")}),
    ("reduction", ValueError, r"reduction: expected one of \('mean', .*got 'average'", {"reduction": "average"}),
    ("smoothing", ValueError, "label_smoothing: expected 0..1, got 1.5", {"label_smoothing": 1.5}),
    ("smoothing is NaN", ValueError, "label_smoothing: expected 0..1, got nan", {"label_smoothing": float("nan")}),
    ("smoothing is text", TypeError, "label_smoothing: expected a number, got '0.1'", {"label_smoothing": "0.1"}),
    ("ignore_index", TypeError, "ignore_index: expected an int, got None", {"ignore_index": None}),
    ("align_corners", TypeError, "align_corners: expected True or False, got 1", {"align_corners": 1}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {"logits": torch.randn(2, 3, 4, 5), "target": torch.zeros(2, 7, 8, dtype=int)}
    check_wrong_input("upsample_cross_entropy", arguments | change, error, text)
