"""The layers of ShuffleNet's plan: stem with pooling, shuffle units, 1x1 convolutions, and the network made of them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.plan import PlannedModule, Program
from liteseg_kernels.testing import trained_like
from tests.plan.test_plan import (
    assert_as_exact_as_torch,
    check_instruction_set,
    error,
    inference,  # noqa: F401
    labels_of,
    layouts,
    network,
    picture,
    with_modules,
)

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

SWITCHES = {
    "stride16": {"output_stride": 16},
    "no_long_residual": {"long_residual": False},
    "no_short_residual": {"short_residual": False},
    "aspp": {"deeper": False},
    "aspp_plain": {"deeper": False, "short_residual": False, "long_residual": False},
    "classes": {"num_classes": 2},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network("shufflenet")


@pytest.fixture(scope="module")
def fused(model: nn.Module) -> nn.Module:
    return lk.fuse(model)


@pytest.mark.parametrize("size", [(33, 47), (65, 97), (64, 96), (128, 32)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [1, 3])
def test_logits(model: nn.Module, fused: nn.Module, size: tuple[int, int], batch: int) -> None:
    assert_as_exact_as_torch(model, fused, picture(batch, 3, *size))


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name: str) -> None:
    model = network("shufflenet", **SWITCHES[name])
    assert_as_exact_as_torch(model, lk.fuse(model), picture(2, 3, 65, 97))


@pytest.mark.parametrize("name", ["channels_last", "slice", "transposed", "flipped_batch"])
def test_layouts(fused: nn.Module, name: str) -> None:
    x = picture(2, 3, 65, 97)
    given = layouts(x)[name]
    logits = fused.low_resolution_logits(given)
    assert torch.equal(logits, fused.low_resolution_logits(x))
    assert logits.stride() == with_modules(fused, given).stride()


def test_empty_batch(fused: nn.Module) -> None:
    x = torch.zeros(0, 3, 64, 96)
    assert lk.runtime.explain(fused, x).plan is not None
    assert fused(x).shape == (0, 11, 64, 96)
    assert labels_of(fused, x, (64, 96)).shape == (0, 64, 96)


def test_labels(model: nn.Module, fused: nn.Module) -> None:
    x = picture(2, 3, 193, 321)
    labels = labels_of(fused, x, (193, 321))
    assert torch.equal(labels, lk.functional.upsample_argmax(fused.low_resolution_logits(x), (193, 321)))
    plain = liteseg.predict(lk.to_reference(model), x)
    assert (liteseg.predict(fused, x) == plain).double().mean() >= 0.9999


def test_sizes_alternate(fused: nn.Module) -> None:
    """The arena holds what former inputs left, not numbers among it; nothing of it may count."""
    inputs = [picture(1, 3, *size) for size in [(65, 97), (33, 47), (160, 224)]]
    expected = [fused.low_resolution_logits(x) for x in inputs]
    fused.low_resolution_logits(torch.full((2, 3, 192, 256), float("nan")))
    for _ in range(2):
        for x, logits in zip(inputs, expected, strict=True):
            assert torch.equal(fused.low_resolution_logits(x), logits)


def test_not_a_number_reaches_every_logit(fused: nn.Module) -> None:
    x = picture(1, 3, 64, 96)
    x[0, 1, 30, 40] = float("nan")
    assert fused.low_resolution_logits(x).isnan().all()


def test_same_bits_on_any_number_of_threads(fused: nn.Module) -> None:
    x = picture(2, 3, 97, 161)
    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        results.append((fused.low_resolution_logits(x), labels_of(fused, x, (97, 161))))
    for logits, labels in results[1:]:
        assert torch.equal(logits, results[0][0]) and torch.equal(labels, results[0][1])


def test_two_threads_at_once(fused: nn.Module) -> None:
    inputs = [picture(1, 3, 65, 97), picture(1, 3, 128, 96)]
    expected = [fused.low_resolution_logits(x) for x in inputs]
    equal: list[bool] = []

    def work(index: int) -> None:
        with torch.inference_mode():
            for _ in range(15):
                equal.append(torch.equal(fused.low_resolution_logits(inputs[index]), expected[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 30 and all(equal)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child(fused: nn.Module) -> None:
    torch.set_num_threads(2)
    x = picture(1, 3, 65, 97)
    expected = fused.low_resolution_logits(x)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        values = np.array_equal(fused.low_resolution_logits(x).numpy(), expected.numpy())
        os._exit(0 if values else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_instruction_sets(model: nn.Module, isa: str, tmp_path: Path) -> None:
    check_instruction_set(model, "shufflenet", isa, tmp_path / "logits.pt")


def test_report(model: nn.Module, fused: nn.Module) -> None:
    report = fused.plan((360, 640))
    plain = liteseg.profile(model, (360, 640))
    assert 0.85 * plain.macs < sum(layer.macs for layer in report.layers if layer.name != "labels") < plain.macs
    shapes = {layer.name: layer.shape for layer in report.layers}
    assert shapes["stem + pool"] == (24, 90, 160)
    assert shapes["stage2.3"] == (384, 45, 80) and shapes["reduce"] == (48, 45, 80)
    strategies = {layer.name: layer.strategy for layer in report.layers}
    # the same unit is done in another way where its compressed map is small
    assert "ring" in strategies["stage2.1"] and "ring" not in strategies["stage4.1"]
    small = {layer.name: layer.strategy for layer in fused.plan((64, 96)).layers}
    assert "ring" not in small["stage2.1"]
    timed = fused.plan((64, 96), profile=True)
    assert all(layer.seconds is not None and layer.seconds > 0 for layer in timed.layers)


# networks that are not LiteSeg


class Units(PlannedModule):
    """Shuffle units of awkward widths on a stem with pooling."""

    in_channels = 1

    def __init__(self, stride: int, channels: int, groups: int, dilation: int) -> None:
        super().__init__()
        self.stem = lk.ConvNormAct(1, channels, 3, stride=stride, bias=True, activation="relu6")
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        wide = 3 * channels
        self.first = lk.ShuffleUnit(channels, wide, groups=groups, first_groups=1, stride=2, combine="concat")
        self.second = lk.ShuffleUnit(wide, wide, groups=groups, dilation=dilation)
        self.point = lk.ConvNormAct(wide, 5, 1, activation="relu")
        self.last = lk.SeparableConv2d(5, 3, 1, bias=True)

    def lower(self, program: Program, x: int) -> int:
        x = program.max_pool(program.run(self.stem, "stem", x), kernel=3, stride=2, padding=1)
        for name in ("first", "second", "point", "last"):
            x = program.run(getattr(self, name), name, x)
        return x

    def forward_modules(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.point(self.second(self.first(self.pool(self.stem(x))))))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (66, 90), (139, 261)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("stride", "channels", "groups", "dilation"), [(1, 12, 3, 1), (2, 20, 5, 3), (3, 4, 1, 1)])
def test_units(size: tuple[int, int], stride: int, channels: int, groups: int, dilation: int) -> None:
    torch.manual_seed(0)
    model = trained_like(Units(stride, channels, groups, dilation))
    fused = lk.fuse(model)
    x = picture(2, 1, *size)
    assert lk.runtime.explain(fused, x).plan is not None
    plain = lk.to_reference(model)
    exact = lk.to_reference(model).double()(x.double())
    assert exact.norm() > 0
    assert error(fused(x), exact) <= max(3 * error(plain(x), exact), 1e-6)


def test_pooling_keeps_not_a_number_and_infinity() -> None:
    torch.manual_seed(0)
    model = trained_like(Units(1, 12, 3, 1))
    fused = lk.fuse(model)
    for value in (float("nan"), float("inf"), float("-inf")):
        x = picture(1, 1, 24, 40)
        x[0, 0, 11, 20] = value
        torch.testing.assert_close(fused(x), lk.to_reference(model)(x), rtol=1e-4, atol=1e-5, equal_nan=True)


class Unpooled(PlannedModule):
    """A pooling that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = lk.ConvNormAct(3, 4, 3)

    def lower(self, program: Program, x: int) -> int:
        return program.max_pool(program.run(self.stem, "stem", x), kernel=5, stride=2, padding=1)


def test_other_pooling_has_no_plan() -> None:
    fused = lk.fuse(trained_like(Unpooled()))
    with pytest.raises(ValueError, match="max_pool: no layer of the plan covers this max_pool"):
        fused.plan()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_programs_never_crash(fused: nn.Module, seed: int) -> None:
    """Any word may be wrong: the op refuses it, or runs within its memory."""
    x = picture(1, 3, 33, 47)
    plan = lk.runtime.explain(fused, x).plan
    generator = torch.Generator().manual_seed(seed)
    words = plan.program.clone()
    for _ in range(3):
        index = torch.randint(len(words), (1,), generator=generator)
        words[index] = torch.randint(-2, 400, (1,), generator=generator)
    try:
        torch.ops.liteseg_cpu.run_plan(x, plan.packed, words, [])
    except RuntimeError as refusal:
        assert str(refusal).startswith("run_plan: ")
