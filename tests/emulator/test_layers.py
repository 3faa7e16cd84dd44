"""The CUDA kernels at the channels of LiteSeg's real layers, on small maps: parity in every schedule, paths taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from liteseg_kernels import functional as F
from tests.kernels import test_daspp, test_inverted_residual, test_separable_conv2d, test_separable_conv2d_classifier
from tests.kernels.suite import inputs, rounded
from tests.kernels.tolerance import RELATIVE, assert_near
from tests.worlds import world

from . import build

SCHEDULES = [("up", 0), ("down", 0), ("random", 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]

separable, residual, pyramid = test_separable_conv2d.case, test_inverted_residual.case, test_daspp.case
LAYERS: list[tuple[Any, Any, Any]] = [
    (F.separable_conv2d, test_separable_conv2d.oracle, separable("atrous", 1, 1280, 12, 20, 96, dilation=6, padding=6)),
    (F.separable_conv2d, test_separable_conv2d.oracle, separable("decoder", 1, 96, 17, 9, 96, activation="relu")),
    (F.separable_conv2d, test_separable_conv2d.oracle, separable("5 x 5", 1, 72, 9, 11, 40, 5, stride=2, padding=4)),
    (
        F.separable_conv2d_classifier,
        test_separable_conv2d_classifier.oracle,
        test_separable_conv2d_classifier.case("decoder to 19", 1, 96, 17, 9, 96, 19, activation="relu"),
    ),
    (F.inverted_residual, test_inverted_residual.oracle, residual("32 to 16", 1, 32, 9, 13, 16, 1)),
    (F.inverted_residual, test_inverted_residual.oracle, residual("16 to 24", 1, 16, 17, 19, 24, 6, stride=2)),
    (F.inverted_residual, test_inverted_residual.oracle, residual("64 to 64", 1, 64, 9, 8, 64, 6, residual=True)),
    (F.inverted_residual, test_inverted_residual.oracle, residual("160 to 320", 1, 160, 6, 10, 320, 6)),
    (
        F.inverted_residual,
        test_inverted_residual.oracle,
        residual("160 to 160, dilation 2", 1, 160, 6, 9, 160, 6, dilation=2, residual=True),
    ),
    (F.daspp, test_daspp.oracle, pyramid("LiteSeg's", 1, 1280, 6, 10, 96, (3, 6, 9))),
]


@pytest.fixture
def controls() -> Iterator[Any]:
    if reason := build.missing():
        pytest.skip(reason)
    module = build.controls()
    module.reset_counters()
    yield module
    module.configure()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "oracle", "case"), LAYERS, ids=[f"{r[0].__name__}-{r[2].name}" for r in LAYERS])
def test_real_layers(op: Any, oracle: Any, case: Any, dtype: torch.dtype, controls: Any) -> None:
    tensors = case.make(torch.Generator().manual_seed(0))
    with world("emulator") as here:
        given = inputs(tensors, here, dtype, "channels_last", ("x",), grad=False)
        results = []
        for schedule, seed in SCHEDULES:
            controls.configure(schedule=schedule, seed=seed)
            results.append(op(**given, **case.options))
        counted = controls.counters()
    assert_near(results[0], oracle(**rounded(tensors, dtype), **case.options), dtype, case.name)
    assert all(torch.equal(results[0], other) for other in results[1:])
    # two launches for the pyramid, one for all others
    assert counted["launches"] == len(SCHEDULES) * (2 if op is F.daspp else 1)
    # the vector path and the tensor cores serve these layers
    assert counted["shared_copies"] > 0
    assert (counted["matrix_products"] > 0) == (dtype != torch.float32)


def test_tf32_where_torch_allows_it(controls: Any) -> None:
    case = separable("", 1, 96, 9, 8, 96, padding=1)
    tensors = case.make(torch.Generator().manual_seed(0))
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        with world("emulator") as here:
            given = inputs(tensors, here, torch.float32, "channels_last", ("x",), grad=False)
            actual = F.separable_conv2d(**given, **case.options)
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
    expected = test_separable_conv2d.oracle(**rounded(tensors, torch.float32), **case.options)
    relative = ((actual.double() - expected).norm() / expected.norm()).item()
    assert RELATIVE[torch.float32] < relative < 1e-3
    assert controls.counters()["matrix_products"] > 0


def test_less_shared_memory_gives_smaller_tiles(controls: Any) -> None:
    case = residual("", 1, 96, 9, 10, 96, 4, residual=True)
    tensors = case.make(torch.Generator().manual_seed(0))
    blocks = []
    with world("emulator") as here:
        given = inputs(tensors, here, torch.float16, "channels_last", ("x",), grad=False)
        for room in (163, 99, 48):
            controls.configure(max_shared=room * 1024)
            controls.reset_counters()
            actual = F.inverted_residual(**given, **case.options)
            blocks.append(controls.counters()["blocks"])
            assert_near(
                actual, test_inverted_residual.oracle(**rounded(tensors, torch.float16), **case.options),
                torch.float16, f"{room} KB",
            )  # fmt: skip
    assert blocks[0] < blocks[-1]


def test_decoder(controls: Any) -> None:
    x, skip = torch.randn(1, 96, 5, 7), torch.randn(1, 24, 17, 26)
    weights = torch.randn(120, 1, 3, 3) / 3, torch.randn(96, 120, 1, 1) / 11, torch.randn(96)
    for dtype in DTYPES:
        given = [t.to(dtype) for t in (x, skip, *weights)]
        low, high, depthwise, pointwise, bias = (t.double() for t in given)
        up = tf.interpolate(low, high.shape[2:], mode="bilinear", align_corners=True)
        whole = torch.cat((up, high), 1)
        expected = tf.conv2d(tf.conv2d(whole, depthwise, padding=1, groups=120), pointwise, bias).relu()
        maps = [t.contiguous(memory_format=torch.channels_last) for t in given[:2]]
        controls.reset_counters()
        with world("emulator"):
            actual: Tensor = F.upsample_concat_separable_conv2d(*maps, *given[2:], padding=1, activation="relu")
        assert_near(actual, expected, dtype, "decoder")
        assert controls.counters()["launches"] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_of_a_real_layer(controls: Any, dtype: torch.dtype) -> None:
    case = separable("", 1, 96, 13, 10, 96, dilation=3, padding=3)
    tensors = case.make(torch.Generator().manual_seed(0))
    names = ["x", "depthwise_weight", "pointwise_weight", "bias"]
    leaves = {k: v.requires_grad_() for k, v in rounded(tensors, dtype).items()}
    upstream = torch.randn(1, 96, 13, 10).to(dtype)
    expected = torch.autograd.grad(
        test_separable_conv2d.oracle(**leaves, **case.options), [leaves[n] for n in names], upstream.double()
    )
    results = []
    with world("emulator") as here:
        given = inputs(tensors, here, dtype, "channels_last", ("x",), grad=True)
        for schedule, seed in SCHEDULES:
            controls.configure(schedule=schedule, seed=seed)
            out = F.separable_conv2d(**given, **case.options)
            results.append(torch.autograd.grad(out, [given[n] for n in names], upstream))
    for index, name in enumerate(names):
        assert_near(results[0][index], expected[index], dtype, name, factor=2)
        assert all(torch.equal(results[0][index], other[index]) for other in results[1:])
