"""Dense convolutions and pools of the network plan: layer by layer in small networks, and the whole of Darknet19."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.plan import PlannedModule, Program, layers
from liteseg_kernels.testing import trained_like
from tests.plan.test_plan import (
    assert_as_exact_as_torch,
    error,
    inference,  # noqa: F401
    labels_of,
    layouts,
    network,
    picture,
)

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")


class Dense(PlannedModule):
    """Convolutions and pools one after the other."""

    def __init__(self, in_channels: int, *parts: nn.Module) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.parts = nn.ModuleList(parts)

    def lower(self, program: Program, x: int) -> int:
        for index, part in enumerate(self.parts):
            if isinstance(part, nn.MaxPool2d):
                x = program.max_pool(x, kernel=part.kernel_size, stride=part.stride, padding=part.padding)
            else:
                x = program.run(part, str(index), x)
        return x

    def forward_modules(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


def conv(channels: int, out_channels: int, kernel: int = 3, **options: object) -> nn.Module:
    settings = {"activation": "leaky_relu", "negative_slope": 0.1} | options
    return lk.ConvNormAct(channels, out_channels, kernel, **settings)


# the first layer only gives the one under test a map of the network to read
def after(in_channels: int, channels: int, *parts: nn.Module) -> Dense:
    return Dense(in_channels, conv(in_channels, channels, 1), *parts)


NETWORKS = {
    "plain": lambda: after(3, 5, conv(5, 7)),
    "one_channel": lambda: after(1, 1, conv(1, 1, activation=None)),
    "wide": lambda: after(2, 31, conv(31, 65, activation="relu")),
    "aliased_channels": lambda: after(2, 256, conv(256, 40, activation="relu6")),
    "pooled": lambda: after(3, 24, conv(24, 33), nn.MaxPool2d(2)),
    "pooled_falling": lambda: after(3, 9, conv(9, 8, negative_slope=-0.5), nn.MaxPool2d(2)),
    "no_padding": lambda: after(3, 8, conv(8, 12, padding=0)),
    "much_padding": lambda: after(3, 8, conv(8, 12, padding=5)),
    "dilated": lambda: after(3, 17, conv(17, 20, dilation=2, padding=1)),
    "dilated_beyond_the_map": lambda: after(3, 8, conv(8, 12, dilation=40)),
    "two": lambda: after(3, 16, conv(16, 24), conv(24, 16, dilation=3)),
}
# sides that leave every remainder of the tiles, and less than one tile
SIZES = [(9, 14), (11, 8), (5, 7), (17, 43)]


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return trained_like(NETWORKS[name]())


def assert_exact(model: nn.Module, fused: nn.Module, x: torch.Tensor, limit: float) -> None:
    assert lk.runtime.explain(fused, x).plan is not None
    exact = lk.to_reference(model).double()(x.double())
    out = fused(x)
    assert out.shape == exact.shape and out.is_contiguous() == x.is_contiguous()
    assert error(out, exact) < limit


def force(monkeypatch: pytest.MonkeyPatch, output: int, passes: bool) -> None:
    """Let every 3x3 convolution of the network's maps take this way, whatever it costs."""

    def choose(self: layers.Convolution, inputs: Sequence[layers.Shape]) -> None:
        self.output = output if self.conv.options["kernel"] == 3 else 0

    monkeypatch.setattr(layers.Convolution, "choose", choose)
    monkeypatch.setattr(layers, "_SHARED_WEIGHTS", 0 if passes else 1 << 40)


@pytest.mark.parametrize("output, passes", [(0, False), (2, False), (4, False), (2, True), (4, True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers(name: str, output: int, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(name)
    force(monkeypatch, output, passes)
    fused = lk.fuse(model)
    for size in SIZES:
        for batch in (1, 2):
            x = picture(batch, model.in_channels, *size)
            # transforms to tiles of 4x4 outputs round about six times as much as plain sums; those of 2,304 products
            # with biases beside them err by 1.05e-6
            assert_exact(model, fused, x, 4e-6 if output == 4 else 1.2e-6)
    ways = {layer.strategy for layer in fused.plan((17, 43)).layers}
    expected = f"Winograd F({output}x{output}, 3x3), {'passes over all' if passes else 'blocks of'} tiles"
    assert (expected if output else "products of copied rows") in ways


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_instruction_sets(isa: str) -> None:
    if isa == "avx2" and torch.ops.liteseg_cpu.isa() == "scalar":
        pytest.skip("this processor has no avx2")
    some = "test_layers and (wide or pooled or two)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", some]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, env=os.environ | {"LITESEG_CPU_ISA": isa}, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("name", ["nchw", "channels_last", "slice", "transposed"])
def test_first_layer(kernel: int, stride: int, name: str) -> None:
    """Reads the network's input at any strides."""
    torch.manual_seed(0)
    model = trained_like(Dense(3, conv(3, 20, kernel, stride=stride, padding=kernel // 2), conv(20, 6, 1)))
    fused = lk.fuse(model)
    for x in (picture(2, 3, 19, 23), picture(1, 3, 8, 5)):
        given = layouts(x)[name]
        exact = lk.to_reference(model).double()(x.double())
        assert error(fused(given), exact) < 1e-6
        assert torch.equal(fused(given), fused(x))


def test_first_layer_with_a_pool() -> None:
    torch.manual_seed(0)
    model = trained_like(Dense(3, conv(3, 33), nn.MaxPool2d(2), conv(33, 4, 1)))
    fused = lk.fuse(model)
    assert len(fused.plan((16, 16)).layers) == 3
    for size in ((7, 9), (40, 131), (2, 2)):
        assert_exact(model, fused, picture(2, 3, *size), 1e-6)


@pytest.mark.parametrize("name", ["stride 2", "stride 2, padded", "pooled"])
def test_pointwise_layers_that_copy_rows(name: str) -> None:
    """A 1x1 convolution reads the map in place only where it reads all of it and stores all it computes."""
    torch.manual_seed(0)
    stride, padding = {"stride 2": (2, 0), "stride 2, padded": (2, 1), "pooled": (1, 0)}[name]
    pool = [nn.MaxPool2d(2)] if name == "pooled" else []
    model = trained_like(after(3, 8, conv(8, 21, 1, stride=stride, padding=padding), *pool, conv(21, 3)))
    fused = lk.fuse(model)
    for size in ((6, 7), (2, 2), (13, 50)):
        assert_exact(model, fused, picture(2, 3, *size), 1e-6)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("channels", [(8, 5), (256, 40)])
def test_pointwise_border(padding: int, channels: tuple[int, int]) -> None:
    """A padded 1x1 convolution grows the map by the activation of its bias."""
    torch.manual_seed(0)
    model = trained_like(after(3, channels[0], conv(*channels, 1, padding=padding), conv(channels[1], 3)))
    fused = lk.fuse(model)
    for size in ((6, 7), (1, 1), (13, 50)):
        assert_exact(model, fused, picture(2, 3, *size), 1e-6)


def test_pool_of_a_map_that_others_read() -> None:
    class Two(Dense):
        def lower(self, program: Program, x: int) -> int:
            full = program.run(self.parts[0], "0", x)
            pooled = program.max_pool(full, kernel=2, stride=2, padding=0)
            program.run(self.parts[1], "1", full)
            return program.run(self.parts[1], "1", pooled)

    torch.manual_seed(0)
    model = trained_like(Two(3, conv(3, 19), conv(19, 4)))
    fused = lk.fuse(model)
    x = picture(2, 3, 11, 14)
    assert "max_pool" in str(fused.plan((11, 14)))
    reference = lk.to_reference(model).double()
    pooled = nn.functional.max_pool2d(reference.parts[0](x.double()), 2)
    assert error(fused(x), reference.parts[1](pooled)) < 1e-6


def test_not_a_number() -> None:
    torch.manual_seed(0)
    for pool in ((), (nn.MaxPool2d(2),)):
        model = trained_like(Dense(3, conv(3, 16), *pool, conv(16, 16), *pool))
        x = picture(1, 3, 24, 40)
        x[0, 1, 9, 17] = float("nan")
        reference, out = lk.to_reference(model)(x).isnan(), lk.fuse(model)(x).isnan()
        # at least where torch has it, and not beyond the tiles it falls into
        assert out[reference].all() and not out.all()


def test_too_small_for_its_pools() -> None:
    fused = lk.fuse(trained_like(Dense(3, conv(3, 4), nn.MaxPool2d(2), conv(4, 4))))
    with pytest.raises(RuntimeError, match="run_plan: x: expected enough rows and columns for every pool, got 1x5"):
        fused(picture(1, 3, 1, 5))


def test_what_no_layer_covers() -> None:
    for model in (
        Dense(3, conv(3, 4), nn.MaxPool2d(3)),
        Dense(4, conv(4, 4, groups=2)),
        Dense(3, conv(3, 4, 9)),
        Dense(3, nn.MaxPool2d(2)),
    ):
        fused = lk.fuse(trained_like(model))
        x = picture(1, model.in_channels, 12, 12)
        assert lk.runtime.explain(fused, x).plan is None
        with pytest.raises(ValueError, match="no layer of the plan covers this"):
            fused.plan()


# the whole network


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network("darknet19")


@pytest.fixture(scope="module")
def fused(model: nn.Module) -> nn.Module:
    return lk.fuse(model)


@pytest.mark.parametrize("size", [(64, 96), (100, 132), (37, 58)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [1, 2])
def test_logits(model: nn.Module, fused: nn.Module, size: tuple[int, int], batch: int) -> None:
    assert_as_exact_as_torch(model, fused, picture(batch, 3, *size))


def test_stride_32() -> None:
    model = network("darknet19", output_stride=32)
    assert_as_exact_as_torch(model, lk.fuse(model), picture(1, 3, 96, 128))


def test_empty_batch(fused: nn.Module) -> None:
    x = torch.zeros(0, 3, 64, 96)
    assert fused(x).shape == (0, 11, 64, 96)
    assert labels_of(fused, x, (64, 96)).shape == (0, 64, 96)


def test_labels(model: nn.Module, fused: nn.Module) -> None:
    x = picture(1, 3, 128, 192)
    labels = labels_of(fused, x, (128, 192))
    expected = lk.to_reference(model)(x).argmax(1)
    assert (labels == expected).double().mean() >= 0.9999


def test_other_runs_and_threads_do_not_count(fused: nn.Module) -> None:
    """Alternating sizes, batches and numbers of threads give the same bits."""
    inputs = [picture(1, 3, 64, 96), picture(2, 3, 68, 40), picture(1, 3, 96, 64)]
    before = [fused.low_resolution_logits(x) for x in inputs]
    for threads in (2, 3, 1):
        torch.set_num_threads(threads)
        fused.low_resolution_logits(torch.full((1, 3, 100, 100), float("nan")))
        for x, logits in zip(inputs, before, strict=True):
            assert torch.equal(fused.low_resolution_logits(x), logits)


def test_report(model: nn.Module, fused: nn.Module) -> None:
    report = fused.plan((360, 640))
    plain = liteseg.profile(model, (360, 640))
    # Winograd's tiles save more than half of the multiply-adds
    assert report.macs < 0.45 * plain.macs
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["low.1 + low.2"].shape == (32, 180, 320)
    assert by_name["low.1 + low.2"].strategy == "products of copied rows"
    assert by_name["high.23"].shape == (1024, 22, 40)
    assert by_name["low.5"].strategy.startswith("Winograd F(2x2, 3x3)")
    assert by_name["high.23"].strategy == "Winograd F(4x4, 3x3), passes over all tiles"
    # four times the plain weights of the deep layers
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert 3 * weights < report.packed_bytes < 4.2 * weights
    assert f"{report.packed_bytes / 1e6:.1f} MB of packed weights" in str(report)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_programs_never_crash(seed: int) -> None:
    """Any word may be wrong: the op refuses it, or runs within its memory."""
    fused = lk.fuse(small("two" if seed % 2 else "pooled"))
    x = picture(1, 3, 17, 23)
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
