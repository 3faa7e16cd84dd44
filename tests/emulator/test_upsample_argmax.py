"""The CUDA kernel of upsample_argmax, emulated on the CPU, against PyTorch's interpolate and argmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .build import load

SIZES = [
    pytest.param((5, 7), (20, 28), id="four-times"),
    pytest.param((1, 1), (9, 33), id="one-cell"),
    pytest.param((6, 5), (1, 1), id="to-one-pixel"),
    pytest.param((13, 9), (7, 4), id="down"),
    pytest.param((12, 17), (12, 17), id="same"),
    pytest.param((7, 3), (63, 65), id="more-than-a-tile"),
]


@pytest.fixture(autouse=True)
def kernel() -> None:
    if reason := load():
        pytest.skip(reason)


def emulated(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return torch.ops.liteseg_cuda.upsample_argmax(logits, size, align_corners)


def scores(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)


def assert_best(labels: Tensor, full: Tensor) -> None:
    """The class chosen has the highest score, within float32's rounding of the interpolation."""
    assert labels.dtype == torch.uint8 and labels.is_contiguous()
    chosen = full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=4e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_parity(small: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, align_corners: bool) -> None:
    logits = torch.randn(2, 19, *small).to(dtype)
    full = scores(logits, size, align_corners)
    labels = emulated(logits, size, align_corners)
    assert_best(labels, full)
    assert torch.equal(labels, emulated(logits, size, align_corners))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
def test_any_strides(layout: str) -> None:
    logits = torch.randn(3, 12, 6, 9)
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        logits = torch.full((4, 14, 8, 20), torch.nan)[1:, 1:13, 1:7, 1:19:2].copy_(logits)
    elif layout == "expanded":
        logits = logits[:1].expand(3, -1, -1, -1)
    else:
        logits = logits.transpose(2, 3)
    assert_best(emulated(logits, (31, 18), True), scores(logits, (31, 18), True))


@pytest.mark.parametrize("classes", [1, 2, 256])
def test_number_of_classes(classes: int) -> None:
    logits = torch.randn(1, classes, 3, 4)
    assert_best(emulated(logits, (6, 8), False), scores(logits, (6, 8), False))


def test_empty_batch() -> None:
    assert emulated(torch.randn(0, 5, 3, 4), (6, 8), True).shape == (0, 6, 8)


def test_equal_scores_give_the_lowest_class() -> None:
    logits = torch.zeros(1, 7, 4, 4)
    logits[:, 2] = logits[:, 5] = 1
    assert torch.equal(emulated(logits, (9, 9), True), torch.full((1, 9, 9), 2, dtype=torch.uint8))


def test_the_first_nan_wins_as_in_argmax() -> None:
    logits = torch.randn(1, 6, 4, 5)
    logits[0, 4, 1, 2] = logits[0, 3, 1, 2] = torch.nan
    for align_corners in (True, False):
        full = scores(logits, (16, 20), align_corners)
        touched = full.isnan().any(1)
        labels = emulated(logits, (16, 20), align_corners).long()
        assert touched.any() and not touched.all()
        assert torch.equal(labels[touched], full.argmax(1)[touched])
        assert set(labels[touched].tolist()) == {3}


@pytest.mark.parametrize(
    ("logits", "size", "text"),
    [
        (torch.zeros(1, 257, 2, 2), (4, 4), "logits: expected 1 to 256 classes, got 257"),
        (torch.zeros(1, 2, 2), (4, 4), r"logits: expected 4 dimensions \[N, K, h, w\], got \[1, 2, 2\]"),
        (torch.zeros(1, 3, 0, 2), (4, 4), r"logits: expected h, w >= 1, got \[1, 3, 0, 2\]"),
        (torch.zeros(1, 3, 2, 2), (0, 4), "size: expected H, W >= 1, got 0 x 4"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.float64), (4, 4), "expected float32, float16 or bfloat16, got float64"),
    ],
)
def test_bad_arguments_are_named(logits: Tensor, size: tuple[int, int], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        emulated(logits, size, True)
