"""Every parameter and operation count that is known of the published networks."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import liteseg
from liteseg.models import LiteSeg, Profile

BACKBONES = ("darknet19", "mobilenetv2", "shufflenet")
SIZE = (512, 1024)


@cache
def model(backbone: str, separable: bool = True) -> LiteSeg:
    with torch.device("meta"):
        return liteseg.create_model(f"liteseg_{backbone}", separable=separable)


@cache
def profiled(backbone: str, separable: bool = True, size: tuple[int, int] = SIZE) -> Profile:
    return liteseg.profile(model(backbone, separable), size)


@pytest.mark.parametrize(
    ("backbone", "separable", "parts", "total", "with_head"),
    [
        ("darknet19", True, (19_817_376, 698_048, 30_035), 20_545_459, 20_545_459),
        ("mobilenetv2", True, (2_223_872, 852_928, 24_907), 3_101_707, 4_382_707),
        ("shufflenet", True, (917_304, 1_007_808, 46_339), 1_971_451, 3_508_451),
        ("darknet19", False, (19_817_376, 3_245_760, 199_923), 23_263_059, 23_263_059),
        ("mobilenetv2", False, (2_223_872, 3_983_040, 188_851), 6_395_763, 7_676_763),
        ("shufflenet", False, (917_304, 4_720_320, 228_115), 5_865_739, 7_402_739),
    ],
)
def test_parameters(backbone: str, separable: bool, parts: tuple[int, ...], total: int, with_head: int) -> None:
    profile = profiled(backbone, separable)
    assert tuple(profile.part(part).params for part in ("backbone", "daspp", "decoder")) == parts
    assert profile.params == total == sum(p.numel() for p in model(backbone, separable).parameters())
    assert profile.params_with_imagenet_head == with_head


@pytest.mark.parametrize(
    ("backbone", "point", "branch", "pool", "project", "decoder", "reduce"),
    [
        ("darknet19", 99_520, 117_984, 98_496, 145_888, 25_747, 4_288),
        ("mobilenetv2", 124_352, 144_864, 123_072, 170_720, 24_907, 0),
        ("shufflenet", 149_184, 171_744, 147_648, 195_552, 27_427, 18_912),
    ],
)
def test_parameters_of_head_modules(
    backbone: str, point: int, branch: int, pool: int, project: int, decoder: int, reduce: int
) -> None:
    rows = profiled(backbone).rows

    def params(*blocks: str) -> int:
        return sum(row.params for row in rows if row.block in blocks)

    assert params("daspp.point") == point
    for index in range(3):
        assert params(f"daspp.atrous.{index}", f"daspp.deep.{index}") == branch
    assert params("daspp.pool") == pool
    # the facts list the normalisation (192) apart
    assert params("daspp.project") == project + 192
    assert params("decoder.0", "decoder.1", "classifier") == decoder
    assert params("reduce") == reduce


@pytest.mark.parametrize(
    ("backbone", "separable", "parts", "total"),
    [
        ("darknet19", True, (54_935.9, 1_224.8, 968.9), 57_129.7),
        ("mobilenetv2", True, (3_129.4, 373.0, 802.9), 4_305.4),
        ("shufflenet", True, (1_429.7, 439.8, 375.5), 2_245.0),
        ("darknet19", False, (54_935.9, 6_442.6, 6_535.8), 67_914.3),
        ("mobilenetv2", False, (3_129.4, 1_975.6, 6_175.1), 11_280.1),
        ("shufflenet", False, (1_429.7, 2_340.6, 1_864.6), 5_634.9),
    ],
)
def test_macs(backbone: str, separable: bool, parts: tuple[float, ...], total: float) -> None:
    profile = profiled(backbone, separable)
    # the known numbers are rounded to a tenth of a million, some of them twice
    for part, expected in zip(("backbone", "daspp", "decoder"), parts, strict=True):
        assert profile.part(part).macs / 1e6 == pytest.approx(expected, abs=0.06), part
    assert profile.macs / 1e6 == pytest.approx(total, abs=0.06)


@pytest.mark.parametrize(
    ("backbone", "small", "large"),
    [("darknet19", 25.348, 222.557), ("mobilenetv2", 1.9376, 17.221), ("shufflenet", 1.0133, 8.980)],
)
def test_macs_at_other_sizes(backbone: str, small: float, large: float) -> None:
    digits = 4 if small < 2 else 3
    assert round(profiled(backbone, True, (360, 640)).macs / 1e9, digits) == small
    assert round(profiled(backbone, True, (1024, 2048)).macs / 1e9, 3) == large


def test_macs_of_single_operations() -> None:
    macs = {row.name: row.macs / 1e6 for row in profiled("mobilenetv2").rows}
    expected = {
        "daspp.point.depthwise": 0.66,
        "daspp.point.pointwise": 62.9,
        "daspp.atrous.0.depthwise": 5.9,
        "daspp.atrous.0.pointwise": 62.9,
        "daspp.deep.0.depthwise": 0.44,
        "daspp.deep.0.pointwise": 4.7,
        "daspp.project.depthwise": 0.9,
        "daspp.project.pointwise": 86.5,
        "decoder.0.depthwise": 35.4,
        "decoder.0.pointwise": 377.5,
        "decoder.1.depthwise": 28.3,
        "decoder.1.pointwise": 302.0,
        "classifier": 59.8,
    }
    for name, value in expected.items():
        assert macs[name] == pytest.approx(value, abs=0.0501 if value > 0.7 else 0.00501), name


@pytest.mark.parametrize(
    ("backbone", "separable", "count"),
    [
        ("darknet19", True, 103.09),
        ("mobilenetv2", True, 4.90),
        ("shufflenet", True, 2.57),
        ("darknet19", False, 124.68),
        ("mobilenetv2", False, 18.86),
        ("shufflenet", False, 9.36),
    ],
)
def test_the_papers_own_counter(backbone: str, separable: bool, count: float) -> None:
    profile = liteseg.profile(model(backbone, separable), SIZE, convention="liteseg")
    assert round(profile.total / 1e9, 2) == count
    assert profile.paper == profile.total == profiled(backbone, separable).paper
    assert profile.macs == profiled(backbone, separable).macs == profiled(backbone, separable).total


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_text_has_all_numbers(backbone: str) -> None:
    numbers = {
        "darknet19": ("20,545,459", "20.55 M", "57.130 G", "103.09"),
        "mobilenetv2": ("3,101,707", "4.38 M", "4.305 G", "4.90"),
        "shufflenet": ("1,971,451", "3.51 M", "2.245 G", "2.57"),
    }
    text = str(profiled(backbone))
    for number in numbers[backbone]:
        assert number in text
    lines = text.splitlines()
    assert f"liteseg_{backbone}" in lines[0] and "512x1024" in lines[0]
    assert any(line.startswith("daspp.atrous.2") for line in lines)
    assert max(len(line) for line in lines) <= 100
    assert "paper M" in str(liteseg.profile(model(backbone), SIZE, "liteseg"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_table_adds_up(backbone: str) -> None:
    profile = profiled(backbone)
    assert sum(profile.part(part).macs for part in ("backbone", "daspp", "decoder")) == profile.macs
    assert {row.block for row in profile.rows} == set(profile.blocks)
    assert profile.blocks["classifier"][:2] == (1, 19)
    if backbone == "shufflenet":
        # the first unit of a stage concatenates: its own shape, not that of its last convolution
        assert profile.blocks["backbone.stage2.0"] == (1, 384, 64, 128)


def test_fused_and_switched_models() -> None:
    fused = liteseg.fuse(liteseg.create_model("liteseg_mobilenetv2"))
    assert liteseg.profile(fused, SIZE).rows == profiled("mobilenetv2").rows
    plain = liteseg.profile(liteseg.create_model("liteseg_mobilenetv2", deeper=False, num_classes=11), SIZE)
    assert plain.params < profiled("mobilenetv2").params
    baseline = liteseg.profile(liteseg.create_model("deeplabv3plus_darknet19"), SIZE)
    assert baseline.part("backbone").macs < profiled("darknet19").part("backbone").macs


def test_bad_arguments() -> None:
    small = model("mobilenetv2")
    with pytest.raises(ValueError, match="convention: expected one of macs, liteseg, got 'flops'"):
        liteseg.profile(small, SIZE, "flops")
    for size in ((31, 64), (64,), 512, ("512", 512), (512.0, 512)):
        with pytest.raises(ValueError, match="size: expected"):
            liteseg.profile(small, size)
    with pytest.raises(TypeError, match="Linear"):
        liteseg.profile(torch.nn.Linear(1, 1), SIZE)
    with pytest.raises(ValueError, match="Profile.part: name"):
        profiled("mobilenetv2").part("head")
