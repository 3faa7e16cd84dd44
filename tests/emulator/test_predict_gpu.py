"""python -m benchmarks.predict_gpu: launches as the launchers plan them, costs from the committed table."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import predict_gpu
from benchmarks.predict_gpu import Launch, Prediction

from . import build


@pytest.fixture(scope="module")
def rows() -> list[Prediction]:
    if reason := build.missing():
        pytest.skip(reason)
    return predict_gpu.predict("liteseg_mobilenetv2", (360, 640))


def test_every_launch_of_the_network_has_a_row(rows: list[Prediction]) -> None:
    kernels = [row.kernel for row in rows]
    # the first block has no expansion; two launches of the pyramid; the decoder's two layers; the labels
    assert kernels.count("inverted_residual") == 17
    assert kernels.count("separable_conv2d") == kernels.count("daspp") == 1
    assert kernels[-3:] == ["upsample_concat_separable_conv2d", "separable_conv2d_classifier", "upsample_argmax"]
    assert all(0 < row.microseconds < 200 for row in rows)
    table = predict_gpu.table_of(rows, (360, 640), 1)
    assert "not ours, assumed" in table and "sum, predicted" in table


def test_the_emulator_runs_again_afterwards(rows: list[Prediction]) -> None:
    assert build.controls().planned() == []


def test_a_prediction_follows_what_it_is_made_of() -> None:
    launch = Launch((132, 1, 1), 256, 100 * 1024, 1, True)
    row = Prediction("", "", launch, 4, latency=17550, issue=1755)
    assert row.microseconds == pytest.approx(10 + predict_gpu.EARLY_US)
    # twice the blocks: two of them fit a multiprocessor at a time, three do not
    for blocks, us in ((264, 10), (396, 20)):
        wider = dataclasses.replace(row, launch=dataclasses.replace(launch, grid=(blocks, 1, 1)))
        assert wider.microseconds == pytest.approx(us + predict_gpu.EARLY_US)
    # where the schedulers are busy all the time, what counts is all instructions
    busy = dataclasses.replace(row, issue=30000)
    assert busy.microseconds == pytest.approx(30000 / predict_gpu.CYCLES_A_US + predict_gpu.EARLY_US)


@pytest.mark.parametrize(
    ("pixels", "stride", "dilation", "expected"),
    [(64, 1, 1, 100), (64, 2, 1, 289), (16, 2, 1, 81), (64, 1, 6, 400), (64, 1, 9, 576), (32, 1, 1, 60)],
)
def test_slots_are_those_of_the_kernels(pixels: int, stride: int, dilation: int, expected: int) -> None:
    assert predict_gpu.slots(pixels, 100, 3, stride, dilation) == expected
