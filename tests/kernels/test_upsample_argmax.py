"""upsample_argmax against torch.nn.functional.interpolate(...).argmax(1) in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from .suite import LAYOUTS, Case, check_forward, check_wrong_input, enter, lk, opcheck, parametrise, randn

F = lk.functional


def oracle(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """The logits at full size; `compare` finds the classes."""
    return tf.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def compare(actual: Tensor, logits: Tensor, dtype: torch.dtype, what: str) -> None:
    """The labels are those of the exact logits, but for pixels whose two best logits float32 cannot tell apart."""
    assert actual.dtype == torch.uint8, what
    expected = logits.argmax(1)
    assert actual.shape == expected.shape, what
    labels = actual.cpu().long()
    differing = labels != expected
    if logits.numel() == 0 or not differing.any():
        return
    best, chosen = (logits.gather(1, index.unsqueeze(1)).squeeze(1)[differing] for index in (expected, labels))
    gap = ((best - chosen) / logits.abs().max()).max().item()
    assert gap <= 1e-5, f"{what}: a label whose logit is {gap:.3g} (of the largest) below the best, in {dtype}"
    assert differing.double().mean().item() <= 1e-4 or differing.sum() <= 1, f"{what}: too many labels differ"


def case(
    name: str,
    n: int,
    k: int,
    size: tuple[int, int],
    to: tuple[int, int],
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    return Case(name, lambda g: {"logits": randn(g, n, k, *size)}, {"size": to, **options}, slow, wide)


CASES = [
    case("one pixel to one pixel", 1, 2, (1, 1), (1, 1)),
    case("one class", 2, 1, (2, 3), (4, 5)),
    case("one pixel to a map", 2, 11, (1, 1), (5, 4)),
    case("a map to one pixel", 1, 19, (3, 4), (1, 1)),
    case("a map to one pixel, half-pixel", 1, 19, (3, 4), (1, 1), align_corners=False),
    case("2 classes, odd sizes", 2, 2, (5, 3), (11, 13)),
    case("3 classes, half-pixel", 2, 3, (5, 3), (11, 13), align_corners=False),
    case("31 classes, 8 times", 1, 31, (2, 3), (16, 24)),
    case("31 classes, 8 times, half-pixel", 1, 31, (2, 3), (16, 24), align_corners=False),
    case("same size", 1, 5, (7, 6), (7, 6)),
    case("smaller", 1, 11, (9, 17), (4, 5)),
    case("smaller, half-pixel", 1, 11, (9, 17), (4, 5), align_corners=False),
    case("larger and smaller", 1, 4, (3, 17), (9, 5)),
    # some vectors of pixels read no more columns than a vector holds, the ones beside them do
    case("hardly larger", 1, 3, (2, 50), (3, 51), slow=True),
    case("one column", 1, 4, (5, 1), (9, 1)),
    case("24 classes", 1, 24, (2, 2), (3, 4)),
    case("96 classes", 1, 96, (2, 2), (3, 4), wide=True),
    case("256 classes", 1, 256, (2, 2), (3, 5)),
    case("batch 0", 0, 19, (3, 4), (6, 8)),
    case("19 classes to 360 x 640", 1, 19, (90, 160), (360, 640), True),
    case("11 classes to 361 x 479, half-pixel, batch 2", 2, 11, (45, 60), (361, 479), True, align_corners=False),
    case("256 classes to 63 x 65", 1, 256, (8, 9), (63, 65), True),
]


@parametrise("upsample_argmax", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.upsample_argmax, oracle, world_name, case, maps=("logits",), compare=compare)


ONCE = [Case("ties", lambda g: {}, {})]


@parametrise("upsample_argmax", ONCE)
def test_ties_go_to_the_lowest_class(world_name: str, case: Case) -> None:
    with enter(world_name) as here:
        for dtype in here.dtypes:
            # halves and integers: the resized logits are exact, in whatever order they are added up
            low = torch.randint(-8, 8, (2, 6, 3, 5)).to(here.device, dtype)
            low[:, 2] = low.amax(1) + 1
            low[:, 4] = low[:, 2]
            assert (F.upsample_argmax(low, (5, 9)) == 2).all(), dtype
            zeros = torch.zeros_like(low)
            zeros[:, 0] = -0.0
            assert (F.upsample_argmax(zeros, (7, 11)) == 0).all(), dtype
            if here.name != "reference":
                # torch's resize does not give equal channels equal sums in all places; one loop over the classes does
                low = torch.randn(2, 37, 3, 5).to(here.device, dtype)
                low[:, 2] = low.amax(1) + 1
                low[:, 36] = low[:, 2]
                assert (F.upsample_argmax(low, (7, 11)) == 2).all(), dtype


@parametrise("upsample_argmax", ONCE)
def test_nan_is_largest_as_in_argmax(world_name: str, case: Case) -> None:
    with enter(world_name) as here:
        for dtype in here.dtypes:
            low = torch.randn(1, 21, 3, 4).to(here.device, dtype)
            for classes, label in (((18,), 18), ((3, 17), 3), (tuple(range(21)), 0)):
                spoilt = low.clone()
                spoilt[:, list(classes)] = float("nan")
                assert (F.upsample_argmax(spoilt, (5, 6)) == label).all(), (dtype, classes)


@pytest.mark.parametrize("align_corners", [True, False])
def test_registration(align_corners: bool) -> None:
    opcheck(
        torch.ops.liteseg.upsample_argmax.default, (torch.randn(2, 5, 4, 3), [7, 8], align_corners), layouts=LAYOUTS
    )


def test_labels_carry_no_gradient() -> None:
    assert not F.upsample_argmax(torch.randn(1, 5, 4, 3, requires_grad=True), (7, 8)).requires_grad


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("three axes", ValueError, r"logits: expected \[N, C, H, W\], got \[5, 4, 3\]", {"logits": torch.randn(5, 4, 3)}),
    (
        "integer logits",
        TypeError,
        "logits: expected dtype float32, .*got int32",
        {"logits": torch.ones(1, 5, 4, 3, dtype=torch.int32)},
    ),
    ("no class", ValueError, "logits: expected at least one channel", {"logits": torch.randn(1, 0, 4, 3)}),
    ("empty map", ValueError, "logits: expected height and width of at least 1", {"logits": torch.randn(1, 5, 0, 3)}),
    (
        "257 classes",
        ValueError,
        "logits: expected at most 256 classes .*got 257",
        {"logits": torch.randn(1, 257, 1, 1)},
    ),
    ("negative size", ValueError, r"size: expected at least 1, got \(-7, 8\)", {"size": (-7, 8)}),
    ("zero size", ValueError, "size: expected at least 1, got 0", {"size": 0}),
    ("three sizes", ValueError, "size: expected an int or a pair of ints", {"size": (1, 7, 8)}),
    ("float size", TypeError, "size: expected ints, got", {"size": (7.0, 8.0)}),
    ("size is None", TypeError, "size: expected ints, got None", {"size": None}),
    ("align_corners", TypeError, "align_corners: expected True or False, got 'yes'", {"align_corners": "yes"}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    check_wrong_input("upsample_argmax", {"logits": torch.randn(1, 5, 4, 3), "size": (7, 8)} | change, error, text)
