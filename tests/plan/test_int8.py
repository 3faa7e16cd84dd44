"""int8 layers of a plan: bit for bit the integers of the exact reference, on every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from liteseg_kernels import _loader
from liteseg_kernels.int8 import ByteGrid, Int8DASPP, Int8InvertedResidual, Int8Pointwise, Int8SeparableConv2d
from liteseg_kernels.nn import DASPP, SeparableConv2d, UpsampleConcat
from liteseg_kernels.plan import PlannedModule, Program
from liteseg_kernels.testing import trained_like
from tests.build.project import ROOT

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")


class Tower(PlannedModule):
    """int8 blocks one behind the other, behind a convolution that changes nothing: plans quantise inner maps only."""

    def __init__(self, blocks: list[nn.Module], in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.same = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.same.weight.data = torch.eye(in_channels)[:, :, None, None]
        self.blocks = nn.ModuleList(blocks)

    def lower(self, program: Program, x: int) -> int:
        x = program.run(self.same, "same", x)
        for index, block in enumerate(self.blocks):
            x = program.run(block, f"blocks.{index}", x)
        return x

    def forward_modules(self, x: Tensor) -> Tensor:
        x = self.same(x)
        for block in self.blocks:
            x = block(x)
        return x


def random_block(
    channels: int,
    hidden: int,
    out: int,
    stride: int,
    dilation: int,
    grids: tuple[ByteGrid, ByteGrid],
    generator: torch.Generator,
) -> Int8InvertedResidual:
    """With bytes all over their range, the ends among them, and sums that scaled are ties."""
    residual = stride == 1 and channels == out
    block = Int8InvertedResidual(channels, hidden, out, stride=stride, dilation=dilation, residual=residual)
    rows = {"expand": channels, "depthwise": 9, "project": hidden}
    for name, count in rows.items():
        weight = block.get_buffer(f"{name}_weight")
        weight.copy_(torch.randint(-127, 128, weight.shape, generator=generator))
        weight[::3] = weight[::3].sign() * 127
        bias = block.get_buffer(f"{name}_bias")
        bias.copy_(torch.randint(-(2**13), 2**13, bias.shape, generator=generator))
        # between saturation of most outputs and of none, some scales a power of two
        scale = 2.0 / (60.0 * count**0.5) * torch.rand(bias.shape, generator=generator).exp2()
        scale[1::4] = 2.0 ** scale[1::4].log2().round()
        block.get_buffer(f"{name}_weight_scale").copy_(scale)
    block.in_scale.fill_(grids[0].scale)
    block.in_zero.fill_(grids[0].zero)
    block.expand_weight_scale /= grids[0].scale
    block.project_weight_scale *= grids[1].scale
    block.out_scale.fill_(grids[1].scale)
    block.out_zero.fill_(grids[1].zero)
    return block


# channels, hidden, out, stride, dilation
SHAPES = {
    "one_channel": (1, 1, 1, 1, 1),
    "odd": (3, 17, 5, 1, 1),
    "residual": (24, 144, 24, 1, 1),
    "stride2": (16, 96, 24, 2, 1),
    "stride3": (7, 65, 33, 3, 1),
    "wide": (65, 130, 127, 1, 1),
    "dilation": (19, 48, 19, 1, 2),
    "dilation_stride": (8, 40, 16, 2, 3),
    "dilation_beyond_the_map": (13, 64, 13, 1, 50),
    "whole_vectors": (64, 384, 64, 1, 1),
}
SIZES = ((1, 1), (2, 3), (5, 9), (17, 13), (31, 40))
GRIDS = (ByteGrid(0.05, 128), ByteGrid(0.037, 101), ByteGrid(0.11, 0), ByteGrid(0.02, 255))


def cases() -> list[tuple[str, Tower, Tensor]]:
    found = []
    for place, (name, (channels, hidden, out, stride, dilation)) in enumerate(SHAPES.items()):
        generator = torch.Generator().manual_seed(place)
        grids = [GRIDS[(place + i) % len(GRIDS)] for i in range(3)]
        blocks = [
            random_block(channels, hidden, out, stride, dilation, (grids[0], grids[1]), generator),
            # the grid that the block before makes
            random_block(out, 2 * out + 1, out, 1, 1, (grids[1], grids[2]), generator),
            # another one
            random_block(out, 3 * out, 4, 1, 1, (grids[0], grids[1]), generator),
        ]
        tower = Tower(blocks, channels).eval()
        tower.plan_()
        for batch, size in zip((2, 1, 1, 2, 1), SIZES, strict=True):
            x = 6.0 * torch.randn(batch, channels, *size, generator=generator)
            x.view(-1)[:: max(3, x.numel() // 5)] = torch.tensor(float("nan"))
            x.view(-1)[1 :: max(3, x.numel() // 4)] = torch.tensor(float("-inf"))
            x.view(-1)[2 :: max(3, x.numel() // 3)] = torch.tensor(float("inf"))
            # without them in the convolution, where they would spread
            found.append(
                (f"{name} {batch}x{size[0]}x{size[1]}", tower, x if channels == 1 else x.nan_to_num(0, 80, -80))
            )
    return found


def random_pointwise(channels: int, out: int, grid: ByteGrid, generator: torch.Generator) -> Int8Pointwise:
    conv = Int8Pointwise(channels, out)
    conv.conv_weight.copy_(torch.randint(-127, 128, conv.conv_weight.shape, generator=generator))
    conv.conv_bias.copy_(torch.randint(-(2**13), 2**13, conv.conv_bias.shape, generator=generator))
    conv.conv_weight_scale.copy_(torch.rand(out, generator=generator) / (40.0 * channels**0.5 * grid.scale))
    conv._set_grid("in", grid)
    return conv


def pointwise_cases() -> list[tuple[str, Tower, Tensor]]:
    found = []
    for place, (channels, out) in enumerate(((1, 1), (3, 65), (64, 32), (31, 130))):
        generator = torch.Generator().manual_seed(place)
        tower = Tower([random_pointwise(channels, out, GRIDS[place], generator)], channels).eval()
        tower.plan_()
        for batch, size in ((2, (5, 7)), (1, (13, 40))):
            x = 6.0 * torch.randn(batch, channels, *size, generator=generator)
            found.append((f"pointwise {channels} {batch}x{size}", tower, x))
    return found


def small(in_channels: int = 3) -> Tower:
    """A network of layers that give the same integers everywhere, from random weights."""
    generator = torch.Generator().manual_seed(0)
    blocks = [
        random_block(in_channels, 24, 20, 2, 1, (GRIDS[0], GRIDS[1]), generator),
        random_block(20, 40, 20, 1, 2, (GRIDS[1], GRIDS[2]), generator),
        random_pointwise(20, 7, GRIDS[2], generator),
    ]
    return Tower(blocks, in_channels)


class Decoding(PlannedModule):
    """Two int8 blocks, and a decoder that joins what they give."""

    def __init__(self, low: Int8InvertedResidual, high: Int8InvertedResidual, filters: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, classes = filters
        self.in_channels = low.in_channels
        self.same = Tower([], low.in_channels).same
        self.low, self.high = low, high
        self.concat = UpsampleConcat()
        joined = high.out_channels + low.out_channels
        self.first = trained_like(SeparableConv2d(joined, first, activation="relu"), seed=joined).eval()
        self.second: nn.Module = trained_like(SeparableConv2d(first, second, activation="relu"), seed=first).eval()
        self.classifier = trained_like(nn.Conv2d(second, classes, 1), seed=second)

    def quantise(self, x: Tensor) -> None:
        """The second convolution on grids that span what it meets of x."""
        low = self.low(self.same(x))
        y = self.first(self.concat(self.high(low), low))
        weights = {name: weight for name, weight in self.second._fold().items() if weight is not None}
        depthwise = weights["depthwise_weight"]
        between = nn.functional.conv2d(y, depthwise, padding=1, groups=len(depthwise))
        reach = ((0.0, y.max()), (between.min(), between.max()), (0.0, self.second(y).max()))
        grids = [ByteGrid.spanning(float(least), float(most)) for least, most in reach]
        self.second = Int8SeparableConv2d.of(**weights, grids=grids)

    def lower(self, program: Program, x: int) -> int:
        low = program.run(self.low, "low", program.run(self.same, "same", x))
        y = program.run(self.concat, "concat", program.run(self.high, "high", low), low)
        for name in ("first", "second", "classifier"):
            y = program.run(getattr(self, name), name, y)
        return y

    def forward_modules(self, x: Tensor) -> Tensor:
        low = self.low(self.same(x))
        return self.classifier(self.second(self.first(self.concat(self.high(low), low))))


# channels of the low and of the high map, filters and classes, stride between the maps, size
DECODERS = {
    "resized": (5, 3, (7, 9, 3), 2, (9, 11)),
    "lifted": (24, 96, (33, 65, 19), 4, (21, 50)),
    "lifted_on_one_pixel": (3, 70, (1, 1, 1), 4, (1, 1)),
    "resized_wide": (130, 9, (64, 32, 70), 1, (3, 117)),
    "whole_vectors": (16, 64, (64, 64, 16), 2, (16, 64)),
}


def decoder(name: str) -> tuple[Decoding, Tensor]:
    skip, channels, filters, stride, size = DECODERS[name]
    generator = torch.Generator().manual_seed(len(name))
    low = random_block(skip, skip + 8, skip, 1, 1, (GRIDS[0], GRIDS[1]), generator)
    high = random_block(skip, skip + 8, channels, stride, 1, (GRIDS[1], GRIDS[len(name) % 4]), generator)
    model = Decoding(low, high, filters).eval()
    x = 3.0 * torch.randn(2, skip, *size, generator=generator)
    model.quantise(x)
    model.plan_()
    return model, x


def check_decoders() -> None:
    """The first convolution is in float and rounds elsewhere, so some of the bytes behind it may move by one."""
    seen = set()
    for name in DECODERS:
        model, x = decoder(name)
        expected = model.forward_modules(x)
        plan = model.plan_or_reason(x)
        assert not isinstance(plan, str), f"{name}: {plan}"
        seen |= {layer.strategy for layer in plan.report(DECODERS[name][-1]).layers if "second" in layer.name}
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert error(plan.logits(given), expected) < 1e-3, name
    assert len(seen) == 2 and all(strategy.startswith("int8 in the second") for strategy in seen), seen


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.double().norm())


def check() -> int:
    """Compares all cases with the reference; the number of bytes compared."""
    count = 0
    with torch.inference_mode():
        for name, tower, x in [*cases(), *pointwise_cases()]:
            plan = tower.plan_or_reason(x)
            assert not isinstance(plan, str), f"{name}: {plan}"
            expected = tower.forward_modules(x)
            for given in (x, x.contiguous(memory_format=torch.channels_last)):
                found = plan.logits(given)
                assert torch.equal(found, expected), f"{name}: {(found != expected).sum()} of {found.numel()} differ"
            # not all saturated
            assert len(expected.unique()) > 2 or expected.numel() < 50, name
            count += expected.numel()
    with torch.no_grad():
        check_decoders()
    return count


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon"])
def test_the_integers_are_the_reference_ones_on_every_instruction_set(isa: str) -> None:
    command = [sys.executable, "-c", "from tests.plan import test_int8; print(test_int8.check())"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"LITESEG_CPU_ISA": isa}, capture_output=True, text=True)
    if "LITESEG_CPU_ISA: expected an instruction set of this processor" in done.stderr or (
        "LITESEG_CPU_ISA: expected scalar" in done.stderr and isa not in done.stderr.split("got")[0]
    ):
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0 and int(done.stdout) > 10_000, done.stderr[-3000:]


@pytest.mark.parametrize("channels, filters, rates", [(70, 24, (1, 2, 5)), (300, 33, (3,)), (13, 1, (2, 60))])
# on the last one 300 channels are summed in several slices
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (12, 20), (64, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_pyramid(channels: int, filters: int, rates: tuple[int, ...], size: tuple[int, int]) -> None:
    """Its bytes but for those that the roundings of its end in float32 move by one."""
    module = trained_like(DASPP(channels, filters, rates))
    weights = {name: weight for name, weight in module._fold().items() if weight is not None}
    x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        middle = [weights[f"atrous_depthwise_{i}"].abs().sum().item() / channels for i in range(len(rates))]
        exact = module(x)
        grids = [ByteGrid(1 / 255), *(ByteGrid(2 * reach / 255, 120) for reach in middle)]
        daspp = Int8DASPP.of(weights, rates, grids=[*grids, ByteGrid.spanning(0.0, float(exact.max()))])
        tower = Tower([daspp], channels).eval()
        tower.plan_()
        plan = tower.plan_or_reason(x)
        assert not isinstance(plan, str), plan
        steps = (plan.logits(x) - tower.forward_modules(x)).abs() / daspp.out_scale
        assert steps.max() < 1.5 and (steps > 0.5).float().mean() < 0.02
        # and near the float pyramid
        assert (tower.forward_modules(x) - exact).abs().max() <= 0.1 * exact.abs().max()
