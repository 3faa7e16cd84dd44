"""upsample_concat against torch.nn.functional.interpolate and torch.cat in float64."""

from __future__ import annotations

from functools import partial
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


def oracle(x: Tensor, skip: Tensor, align_corners: bool = True) -> Tensor:
    return torch.cat((tf.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=align_corners), skip), 1)


def case(
    name: str,
    n: int,
    c: int,
    size: tuple[int, int],
    skip: int,
    to: tuple[int, int],
    slow: bool = False,
    wide: bool = False,
    **options: Any,
) -> Case:
    def make(g: torch.Generator) -> dict[str, Any]:
        return {"x": randn(g, n, c, *size), "skip": randn(g, n, skip, *to)}

    return Case(name, make, options, slow, wide)


CASES = [
    case("one pixel to one pixel", 1, 3, (1, 1), 1, (1, 1)),
    case("one pixel to a map", 2, 1, (1, 1), 3, (4, 5)),
    case("one pixel to a map, half-pixel", 1, 2, (1, 1), 1, (4, 5), align_corners=False),
    case("a map to one pixel", 1, 2, (4, 5), 3, (1, 1)),
    case("a map to one pixel, half-pixel", 1, 2, (4, 5), 3, (1, 1), align_corners=False),
    case("one row to several", 2, 3, (1, 4), 2, (5, 9)),
    case("odd sizes", 2, 5, (3, 4), 7, (7, 9)),
    case("odd sizes, half-pixel", 2, 5, (3, 4), 7, (7, 9), align_corners=False),
    case("four times larger, half-pixel", 1, 4, (3, 2), 3, (12, 8), align_corners=False),
    case("same size", 1, 3, (5, 4), 2, (5, 4)),
    case("smaller", 1, 3, (9, 8), 2, (4, 3)),
    case("smaller, half-pixel", 1, 3, (9, 8), 2, (4, 3), align_corners=False),
    case("larger and smaller", 1, 2, (3, 9), 1, (8, 4)),
    case("31 and 24 channels", 1, 31, (2, 3), 24, (3, 5)),
    case("96 and 384 channels", 1, 96, (2, 2), 384, (3, 3), wide=True),
    case("batch 0", 0, 4, (2, 3), 5, (4, 6)),
    case("LiteSeg's at 90 x 160", 1, 96, (23, 40), 24, (90, 160), slow=True),
    case("384 channels, 63 x 65, half-pixel", 2, 384, (8, 9), 1, (63, 65), slow=True, align_corners=False),
    case("127 wide to 13", 1, 24, (5, 127), 31, (63, 13), slow=True),
]


def _compare(case: Case) -> Any:
    # sampling positions are computed in float32, as torch does: over 40 pixels they are off by up to 40 * 2^-24,
    # which is the share of the difference between neighbours that the result is off by
    return partial(assert_near, factor=8.0) if case.slow else assert_near


@parametrise("upsample_concat", CASES)
def test_forward(world_name: str, case: Case) -> None:
    check_forward(F.upsample_concat, oracle, world_name, case, maps=("x", "skip"), compare=_compare(case))


@parametrise("upsample_concat", CASES, also="upsample_concat_backward")
def test_backward(world_name: str, case: Case) -> None:
    check_backward(F.upsample_concat, oracle, world_name, case, maps=("x", "skip"), factor=8.0 if case.slow else 2.0)


@parametrise("upsample_concat", CASES[:1])
def test_memory_formats_may_differ(world_name: str, case: Case) -> None:
    with enter(world_name) as here:
        x, skip = torch.randn(2, 3, 2, 3, device=here.device), torch.randn(2, 4, 5, 6, device=here.device)
        nhwc = skip.contiguous(memory_format=torch.channels_last)
        for first in (x, x.contiguous(memory_format=torch.channels_last)):
            for second, wanted in ((skip, torch.contiguous_format), (nhwc, torch.channels_last)):
                out = F.upsample_concat(first, second)
                assert_near(out, oracle(x.double(), skip.double()).cpu(), torch.float32, "formats")
                assert out.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("align_corners", [True, False])
def test_registration(align_corners: bool) -> None:
    args = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 6, 7, 8, requires_grad=True), align_corners
    opcheck(torch.ops.liteseg.upsample_concat.default, args, maps=(0, 1))


@pytest.mark.parametrize("align_corners", [True, False])
def test_registration_of_backward(align_corners: bool) -> None:
    args = torch.randn(2, 9, 7, 8), [4, 5], 3, align_corners
    opcheck(torch.ops.liteseg.upsample_concat_backward.default, args)


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 3, 2, 3, requires_grad=True)
    check_double_backward_refused("upsample_concat", F.upsample_concat(x, torch.randn(2, 1, 5, 6)), x)


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("x has three axes", ValueError, r"x: expected \[N, C, H, W\], got \[3, 4, 5\]", {"x": torch.randn(3, 4, 5)}),
    ("x is integer", TypeError, "x: expected dtype float32, .*got uint8", {"x": torch.ones(2, 3, 4, 5).byte()}),
    ("x is empty", ValueError, "x: expected height and width of at least 1", {"x": torch.randn(2, 3, 0, 5)}),
    ("skip is empty", ValueError, "skip: expected height and width of at least 1", {"skip": torch.randn(2, 6, 7, 0)}),
    ("no channel", ValueError, "skip: expected at least one channel", {"skip": torch.randn(2, 0, 7, 8)}),
    ("skip is a size", TypeError, "skip: expected a tensor, got tuple", {"skip": (7, 8)}),
    ("batches", ValueError, r"skip: expected \[2, C, H, W\], got \[1, 6, 7, 8\]", {"skip": torch.randn(1, 6, 7, 8)}),
    ("dtype mix", TypeError, "skip: expected x's dtype float32, got float16", {"skip": torch.randn(2, 6, 7, 8).half()}),
    (
        "device mix",
        ValueError,
        "skip: expected x's device cpu, got meta",
        {"skip": torch.randn(2, 6, 7, 8, device="meta")},
    ),
    ("align_corners", TypeError, "align_corners: expected True or False, got None", {"align_corners": None}),
]


@pytest.mark.parametrize(("error", "text", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_input_is_named(error: type[Exception], text: str, change: dict[str, Any]) -> None:
    arguments = {"x": torch.randn(2, 3, 4, 5), "skip": torch.randn(2, 6, 7, 8)}
    check_wrong_input("upsample_concat", arguments | change, error, text)
