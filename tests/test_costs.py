"""What `auto` chooses by: which rows of the table count, and that the table is what was measured."""

from __future__ import annotations

import pytest

from benchmarks import costs as measured
from liteseg_kernels import _costs
from liteseg_kernels._costs import Gpu

H200, H100, A100 = Gpu("NVIDIA H200", (9, 0)), Gpu("NVIDIA H100", (9, 0)), Gpu("NVIDIA A100", (8, 0))


def rows(*lines: tuple[str, str, str, str, str, float]) -> list[dict[str, str]]:
    """Of (device, capability, op, kind, backend, us)."""
    return [dict(zip(_costs.COLUMNS, (*map(str, line), "a case", "a day"), strict=True)) for line in lines]


TABLE = rows(
    ("NVIDIA H200", "9.0", "*", "half", "cuda", 2.0),
    ("NVIDIA H200", "9.0", "*", "half", "triton", 3.0),
    ("NVIDIA H200", "9.0", "daspp", "half", "cuda", 5.0),
    ("NVIDIA H200", "9.0", "daspp", "half", "triton", 4.0),
    ("NVIDIA A100", "8.0", "*", "half", "cuda", 9.0),
    ("NVIDIA A100", "8.0", "*", "half", "triton", 8.0),
    ("NVIDIA A100", "8.0", "*", "single", "cuda", 1.0),
)


@pytest.mark.parametrize(
    ("gpu", "op", "fastest", "device", "known"),
    [
        (H200, "preprocess", "cuda", "NVIDIA H200", True),
        (H200, "daspp", "triton", "NVIDIA H200", True),
        (A100, "preprocess", "triton", "NVIDIA A100", True),
        # nothing measured there: the GPU of the nearest compute capability
        (H100, "daspp", "triton", "NVIDIA H200", False),
        (Gpu("NVIDIA RTX 3090", (8, 6)), "preprocess", "triton", "NVIDIA A100", False),
        (Gpu("NVIDIA RTX 3090", (8, 6)), "daspp", "triton", "NVIDIA A100", False),
    ],
)
def test_rows_of_the_gpu_itself_then_of_the_nearest(gpu: Gpu, op: str, fastest: str, device: str, known: bool) -> None:
    found = _costs.chosen(TABLE, gpu, op, "half")
    assert found is not None and (found.device, found.measured) == (device, known)
    assert min(found.us, key=found.us.__getitem__) == fastest


def test_figures_that_cannot_be_compared_are_none() -> None:
    assert _costs.chosen(TABLE, A100, "daspp", "single") is None
    # a network's forward passes say nothing about gradients
    assert _costs.chosen(TABLE, H200, "daspp_backward", "half") is None


def test_the_table_is_what_was_measured() -> None:
    assert measured.text(measured.collected()) == _costs.PATH.read_text(), "run python -m benchmarks.costs"


def _result(**changes: str) -> dict[str, str]:
    row = {"device": "NVIDIA H200", "op": "n", "provider": "liteseg cuda graph", "mode": "labels", "shape": "8x8 b1"}
    row |= {"dtype": "fp16", "p50": "1.5", "unit": "ms", "status": "ok", "sources": "s", "commit": "c", "torch": "t"}
    return row | {"date": "2026-01-01T00:00:00Z"} | changes


def test_only_what_was_measured_together_is_compared() -> None:
    other = _result(provider="liteseg triton graph", p50="2.5")
    (cuda, triton) = measured.costs([_result(), other], networks=True)
    assert (cuda["backend"], cuda["us"], triton["backend"], triton["us"]) == ("cuda", "1500.0", "triton", "2500.0")
    assert cuda["op"] == "*" and cuda["kind"] == "half" and cuda["basis"] == "n 8x8 b1"
    for change in ({"status": "failed"}, {"sources": "x"}, {"shape": "9x9 b1"}, {"date": "2026-01-02T00:00:00Z"},
                   {"provider": "liteseg auto graph"}, {"dtype": "fp32"}):  # fmt: skip
        assert measured.costs([_result(), other | change], networks=True) == []
    with pytest.raises(ValueError, match="costs: device: expected one that CAPABILITIES names, got 'a GPU'"):
        measured.costs([_result(device="a GPU"), other | {"device": "a GPU"}], networks=True)
