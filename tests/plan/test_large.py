"""Plans at the sizes people use: maps on both sides of what fits into a slice, a tile or a cache.

Below, most strategies take one slice, one band and one pass, and a fault between two of them does not show: a bias that
was added once for every slice went unseen by every test on small pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.plan import PlannedModule, Program
from liteseg_kernels.testing import trained_like
from tests.data import street_file
from tests.kernels.tolerance import RELATIVE

from .test_bf16 import needs_bf16_plans
from .test_plan import error, inference, network, picture, uncalibrated, with_modules  # noqa: F401

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

NETWORKS = {
    "mobilenetv2": {},
    "mobilenetv2_stride16": {"output_stride": 16},
    "shufflenet": {},
    "darknet19": {},
}
SIZES = [(360, 640), (512, 1024), (540, 720), (768, 1024), (1024, 2048)]
# maps on both sides of the pixels at which a pyramid takes its channels in more than one slice, in float32 and bfloat16
AROUND = {
    torch.float32: [(16, 32), (21, 39), (20, 41), (40, 41)],
    torch.bfloat16: [(16, 24), (18, 34), (15, 41), (40, 41)],
}

# of networks this shallow
LIMITS = {torch.float32: 2e-6, torch.bfloat16: RELATIVE[torch.bfloat16]}

each_network = pytest.mark.parametrize("name", NETWORKS)
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@each_network
@each_size
def test_logits_are_those_of_the_modules(name: str, size: tuple[int, int]) -> None:
    fused = lk.fuse(uncalibrated(name.split("_")[0], **NETWORKS[name]))
    x = picture(1, 3, *size)
    assert lk.runtime.explain(fused, x).plan is not None
    assert largest_error(fused.low_resolution_logits(x), with_modules(fused, x).double()) <= 1e-6


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: network(name.split("_")[0], **NETWORKS[name]) for name in NETWORKS}


@each_network
@pytest.mark.parametrize("size", [(512, 1024)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_logits_are_as_exact_as_torchs(models: dict[str, nn.Module], name: str, size: tuple[int, int]) -> None:
    """With their own statistics, the logits depend on every layer."""
    model, x = models[name], picture(1, 3, *size)
    plain = lk.to_reference(model)
    own = plain.low_resolution_logits(x)
    exact = plain.double().low_resolution_logits(x.double())
    assert error(lk.fuse(model).low_resolution_logits(x), exact) <= 3 * error(own, exact)


@needs_bf16_plans
@pytest.mark.parametrize("size", [(512, 1024), (736, 1312), (1024, 2048)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_bfloat16(models: dict[str, nn.Module], size: tuple[int, int]) -> None:
    model, x = models["mobilenetv2"], picture(1, 3, *size).bfloat16()
    exact = lk.fuse(model).low_resolution_logits(x.float()).double()
    own = error(lk.to_reference(model).bfloat16().low_resolution_logits(x), exact)
    fused = lk.fuse(model).bfloat16()
    assert lk.runtime.explain(fused, x).plan is not None
    assert error(fused.low_resolution_logits(x), exact) <= 1.5 * own


def street(height: int, width: int) -> torch.Tensor:
    pixels = np.array(Image.open(street_file()).convert("RGB").resize((width, height)))
    return lk.functional.preprocess(torch.from_numpy(pixels)[None])


def assert_logits_are_torchs(model: nn.Module) -> None:
    """On a picture of a street at the size of Cityscapes' own."""
    fused, x = lk.fuse(model), street(1024, 2048)
    assert lk.runtime.explain(fused, x).plan is not None
    expected = lk.to_reference(model).low_resolution_logits(x)
    # what two orders of summing differ by in tens of layers
    assert error(fused.low_resolution_logits(x), expected.double()) < 1e-4


@each_network
def test_street(models: dict[str, nn.Module], name: str) -> None:
    assert_logits_are_torchs(models[name])


def test_street_with_the_bundled_weights() -> None:
    assert_logits_are_torchs(liteseg.create_model(weights="camvid").eval())


def test_street_with_the_shared_weights(shared: Path) -> None:
    torch.manual_seed(0)
    weights = shared / "weights/mobilenet_v2_imagenet_int8dq.safetensors"
    model = liteseg.create_model("liteseg_mobilenetv2", backbone_weights=weights).eval()
    for part in (model.daspp, model.decoder, model.classifier):
        trained_like(part)
    assert_logits_are_torchs(model)


class Head(PlannedModule):
    """A pyramid and a decoder behind as little as a plan needs."""

    def __init__(self, channels: int, filters: int, rates: tuple[int, ...], *, last: bool, deeper: bool) -> None:
        super().__init__()
        self.stem = lk.ConvNormAct(3, 16, 3, activation="relu6")
        self.first = lk.InvertedResidual(16, 24 if last else channels, 1, 1)
        self.last = lk.ConvNormAct(24, channels, 1, activation="relu6") if last else None
        self.daspp = lk.DASPP(channels, filters, rates, deeper=deeper, short_residual=last)
        self.join = lk.UpsampleConcat()
        low = 24 if last else channels
        self.decoder = nn.ModuleList([lk.SeparableConv2d(filters + low, 8), lk.SeparableConv2d(8, 8)])
        self.classifier = nn.Conv2d(8, 5, 1)

    def lower(self, program: Program, x: int) -> int:
        low = y = program.run(self.first, "first", program.run(self.stem, "stem", x))
        if self.last is not None:
            y = program.run(self.last, "last", y)
        y = program.run(self.join, "join", program.run(self.daspp, "daspp", y), low)
        for convolution in self.decoder:
            y = program.run(convolution, "convolution", y)
        return program.convolution(y, self.classifier.weight, self.classifier.bias)

    def forward_modules(self, x: torch.Tensor) -> torch.Tensor:
        low = y = self.first(self.stem(x))
        if self.last is not None:
            y = self.last(y)
        y = self.join(self.daspp(y), low)
        for convolution in self.decoder:
            y = convolution(y)
        return self.classifier(y)


# channels, filters, rates, a convolution in front, second convolutions
HEADS = {
    "wide": (640, 12, (1, 3), True, True),
    # the last slice is narrower, and neither it nor the filters fill a vector
    "odd": (599, 19, (2,), True, False),
    "no convolution in front": (530, 8, (1, 20), False, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16_plans)], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_slices_of_daspp(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    channels, filters, rates, last, deeper = HEADS[name]
    model = Head(channels, filters, rates, last=last, deeper=deeper)
    trained_like(model, picture(2, 3, 16, 24))
    fused, exact = lk.fuse(model).to(dtype), lk.to_reference(model).double()
    for size in AROUND[dtype]:
        x = picture(2, 3, *size).to(dtype)
        assert lk.runtime.explain(fused, x).plan is not None
        assert error(fused(x), exact(x.double())) <= LIMITS[dtype]
