"""The CUDA kernels at the channels of LiteSeg's real layers, on small maps: parity in every schedule, paths taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf

from liteseg_kernels import functional as F
from tests.kernels import (
    test_daspp,
    test_inverted_residual,
    test_separable_conv2d,
    test_separable_conv2d_classifier,
    test_shuffle_unit,
)
from tests.kernels.suite import inputs, rounded
from tests.kernels.tolerance import RELATIVE, assert_near
from tests.worlds import find, world

from . import build

SCHEDULES = [("up", 0), ("down", 0), ("random", 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]

separable, residual, pyramid = test_separable_conv2d.case, test_inverted_residual.case, test_daspp.case
unit = test_shuffle_unit.case
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
    (
        F.shuffle_unit,
        test_shuffle_unit.oracle,
        unit("24 to 384", 1, 24, 17, 19, 96, 8, first=1, branch=360, stride=2),
    ),
    (F.shuffle_unit, test_shuffle_unit.oracle, unit("384 to 384", 1, 384, 9, 10, 96, 8)),
    (F.shuffle_unit, test_shuffle_unit.oracle, unit("1536 to 1536, dilation 2", 1, 1536, 5, 6, 384, 8, dilation=2)),
    (F.daspp, test_daspp.oracle, pyramid("LiteSeg's", 1, 1280, 6, 10, 96, (3, 6, 9))),
    # sums over many channels are shared by the blocks of a cluster
    (
        F.separable_conv2d,
        test_separable_conv2d.oracle,
        separable("248 to 40, residual", 2, 248, 9, 7, 40, residual=True, activation="leaky_relu"),
    ),
    (F.daspp, test_daspp.oracle, pyramid("250 channels, 130 filters", 2, 250, 5, 7, 130, (2, 5), out=100, point=True)),
    (F.daspp, test_daspp.oracle, pyramid("plain", 1, 256, 5, 9, 40, (2, 5), deeper=False, direct=False, point=True)),
]


LAYER_NAMES = [f"{row[0].__name__}-{row[2].name}" for row in LAYERS]


@pytest.fixture
def controls() -> Iterator[Any]:
    if reason := build.missing():
        pytest.skip(reason)
    module = build.controls()
    module.reset_counters()
    yield module
    module.configure()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "oracle", "case"), LAYERS, ids=LAYER_NAMES)
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
    # maps this small leave multiprocessors free, so each launch may begin early
    assert counted["early_launches"] == counted["launches"]
    # the vector path and the tensor cores serve these layers; the shuffle unit copies its taps alone
    assert counted["shared_copies"] > 0
    assert (counted["matrix_products"] > 0) == (dtype != torch.float32)


def _call(op: Any, case: Any, dtype: torch.dtype = torch.float16) -> tuple[dict[str, Any], Any]:
    """Arguments of a call in the emulator, and the expected result."""
    tensors = case.make(torch.Generator().manual_seed(0))
    given = inputs(tensors, find("emulator"), dtype, "channels_last", ("x",), grad=False)
    oracle = next(row[1] for row in LAYERS if row[0] is op)
    return given, oracle(**rounded(tensors, dtype), **case.options)


def _memory(value: Any) -> list[tuple[int, int]]:
    """(address, bytes) of every tensor in an argument."""
    if isinstance(value, Tensor):
        return [(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes())]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [memory for item in values for memory in _memory(item)]


@pytest.mark.parametrize(("op", "case"), [(row[0], row[2]) for row in LAYERS], ids=LAYER_NAMES)
def test_an_early_launch_reads_nothing_before_it_has_waited(op: Any, case: Any, controls: Any) -> None:
    given, _ = _call(op, case)
    with world("emulator"):
        expected = op(**given, **case.options)
        controls.configure(unwritten=_memory(given))
        controls.reset_counters()
        assert torch.equal(op(**given, **case.options), expected)
    counted = controls.counters()
    assert counted["early_launches"] == counted["launches"] > 0


def test_labels_wait_for_the_logits(controls: Any) -> None:
    logits = torch.randn(1, 19, 5, 7)
    with world("emulator"):
        expected = F.upsample_argmax(logits, (40, 56))
        controls.configure(unwritten=_memory(logits))
        controls.reset_counters()
        assert torch.equal(F.upsample_argmax(logits, (40, 56)), expected)
    assert controls.counters()["early_launches"] == 1


def test_who_begins_early(controls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    op, case = F.inverted_residual, residual("64 to 64", 1, 64, 23, 40, 64, 6, residual=True)
    given, expected = _call(op, case)
    # a grid of 15 blocks, before any of them is split
    for options, variable, early in (
        ({}, None, 1),
        ({}, "1", 1),
        ({}, "0", 0),
        ({"sm_90": False}, None, 0),
        ({"multiprocessors": 15}, None, 1),
        ({"multiprocessors": 14}, None, 0),
    ):
        controls.configure(**options)
        controls.reset_counters()
        with monkeypatch.context() as patch, world("emulator"):
            patch.delenv("LITESEG_EARLY_LAUNCH", raising=False)
            if variable is not None:
                patch.setenv("LITESEG_EARLY_LAUNCH", variable)
            actual = op(**given, **case.options)
        assert controls.counters()["early_launches"] == early, (options, variable)
        assert_near(actual, expected, torch.float16, str(options))


# the blocks of the networks from stride 8 on at 360 x 640 on 132 multiprocessors: tiles and blocks of columns, and the
# blocks of a cluster that share the hidden channels; tiles without clusters
SPLIT = [
    ("32 to 32", residual("", 1, 32, 45, 80, 32, 6, residual=True), 60, 2),
    ("32 to 64", residual("", 1, 32, 45, 80, 64, 6, stride=2), 30, 4),
    ("64 to 64", residual("", 1, 64, 23, 40, 64, 6, residual=True), 15, 8),
    ("96 to 96", residual("", 1, 96, 23, 40, 96, 6, residual=True), 15, 8),
    ("96 to 160", residual("", 1, 96, 23, 40, 160, 6, stride=2), 15, 8),
    ("160 to 160", residual("", 1, 160, 12, 20, 160, 6, residual=True), 15, 8),
    ("160 to 320", residual("", 1, 160, 12, 20, 320, 6), 12, 8),
]


@pytest.mark.parametrize(("case", "tiles", "splits"), [row[1:] for row in SPLIT], ids=[r[0] for r in SPLIT])
def test_small_maps_fill_the_device(
    case: Any, tiles: int, splits: int, controls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, expected = _call(F.inverted_residual, case)
    hopper = {"max_shared": 227 * 1024}
    for options, variable in ((hopper, "1"), (hopper, "0"), ({"sm_90": False}, "1")):
        controls.configure(**options)
        controls.reset_counters()
        monkeypatch.setenv("LITESEG_CLUSTERS", variable)
        with world("emulator"):
            actual = F.inverted_residual(**given, **case.options)
        counted = controls.counters()
        assert counted["launches"] == 1
        if options is hopper and variable == "1":
            assert (counted["blocks"], counted["clusters"]) == (tiles * splits, tiles)
        else:
            # smaller tiles are all that is left
            assert counted["clusters"] == 0 and counted["blocks"] >= tiles
        assert_near(actual, expected, torch.float16, str(options))


def test_clusters_that_cannot_run_at_once_are_halved(controls: Any) -> None:
    case = SPLIT[5][1]
    given, expected = _call(F.inverted_residual, case)
    results = []
    for cluster_blocks, splits in ((132, 8), (112, 4), (45, 2), (14, 1)):
        controls.configure(max_shared=227 * 1024, cluster_blocks=cluster_blocks)
        controls.reset_counters()
        with world("emulator"):
            results.append(F.inverted_residual(**given, **case.options))
        counted = controls.counters()
        assert (counted["blocks"], counted["clusters"]) == (15 * splits, 15 if splits > 1 else 0)
        assert_near(results[-1], expected, torch.float16, str(cluster_blocks))


def test_the_pyramids_channels_are_split_too(controls: Any) -> None:
    case = pyramid("", 1, 1280, 12, 20, 96, (3, 6, 9))
    given, expected = _call(F.daspp, case)
    # tiles by three rates and the pooled branch in the first launch, alone in the second
    for options, first, second in (({"max_shared": 227 * 1024}, (6, 4), (9, 8)), ({"sm_90": False}, None, None)):
        controls.configure(**options)
        controls.reset_counters()
        with world("emulator"):
            actual = F.daspp(**given, **case.options)
        counted = controls.counters()
        assert counted["launches"] == 2
        if first is None or second is None:
            assert counted["clusters"] == 0
        else:
            assert counted["blocks"] == 4 * first[0] * first[1] + second[0] * second[1]
            assert counted["clusters"] == 4 * first[0] + second[0]
        assert_near(actual, expected, torch.float16, str(options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "nchw", "sliced"])
def test_clusters_with_uneven_parts(layout: str, dtype: torch.dtype, controls: Any) -> None:
    case = residual("", 2, 31, 7, 9, 31, 9, residual=True)
    tensors = case.make(torch.Generator().manual_seed(0))
    results = []
    with world("emulator") as here:
        given = inputs(tensors, here, dtype, layout, ("x",), grad=False)
        for schedule, seed in SCHEDULES:
            controls.configure(schedule=schedule, seed=seed)
            results.append(F.inverted_residual(**given, **case.options))
    assert_near(results[0], test_inverted_residual.oracle(**rounded(tensors, dtype), **case.options), dtype, layout)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert controls.counters()["clusters"] > 0


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
            # on one multiprocessor the largest tile that fits is the fastest
            controls.configure(max_shared=room * 1024, multiprocessors=1)
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
