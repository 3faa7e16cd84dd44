"""ImageNet weights for the MobileNetV2 backbone in both key layouts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import liteseg
from liteseg_kernels.testing import trained_like
from tests.models.base import largest_difference
from tests.models.official_nets import MobileNetLiteSeg

StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return trained_like(MobileNetLiteSeg().mobile_features, seed=1)


@pytest.fixture(scope="module")
def flat(net: torch.nn.Module) -> StateDict:
    return dict(net.state_dict())


def nested(flat: StateDict) -> StateDict:
    """The flat names as torchvision has them."""
    first = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
    others = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}

    def rename(match: re.Match[str]) -> str:
        names = first if match[1] == "1" else others
        return f"features.{match[1]}.conv.{names[match[2]]}."

    return {re.sub(r"^features\.(\d+)\.conv\.(\d)\.", rename, key): value for key, value in flat.items()}


def write(state: StateDict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def test_the_layouts_differ(flat: StateDict) -> None:
    other = nested(flat)
    assert len(other) == len(flat) == 314
    assert "features.1.conv.0.0.weight" in other and "features.17.conv.1.1.running_var" in other
    assert "features.1.conv.0.weight" in flat and "features.17.conv.4.running_var" in flat


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
@pytest.mark.parametrize("layout", ["flat", "torchvision"])
@torch.no_grad()
def test_layouts(flat: StateDict, net: torch.nn.Module, layout: str, suffix: str, tmp_path: Path) -> None:
    path = write(flat if layout == "flat" else nested(flat), tmp_path / f"x{suffix}")
    for name in ("liteseg_mobilenetv2", "deeplabv3plus_mobilenetv2"):
        model = liteseg.create_model(name, 11, backbone_weights=path).eval()
        x = torch.randn(1, 3, 64, 96)
        low, encoded = model.backbone(x)
        expected_low = net.features[:4](x)
        assert largest_difference(low, expected_low) < 1e-5
        assert largest_difference(encoded, net.features[4:](expected_low)) < 1e-4


def test_wrapped_and_without_counters(flat: StateDict, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in flat.items() if not key.endswith("num_batches_tracked")}
    model = liteseg.create_model(
        "liteseg_mobilenetv2", backbone_weights=write({"state_dict": state}, tmp_path / "x.pth")
    )
    assert torch.equal(model.backbone.last.conv.weight, flat["features.18.0.weight"])
    assert model.backbone.last.norm.num_batches_tracked == 0


def test_classifier_is_optional(flat: StateDict, tmp_path: Path) -> None:
    state = {key: value for key, value in flat.items() if not key.startswith("classifier")}
    model = liteseg.create_model("liteseg_mobilenetv2", backbone_weights=write(state, tmp_path / "x.pth"))
    assert torch.equal(model.backbone.stem.conv.weight, flat["features.0.0.weight"])


@pytest.mark.parametrize("layout", ["flat", "torchvision"])
def test_wrong_keys_and_shapes(flat: StateDict, layout: str, tmp_path: Path) -> None:
    state = flat if layout == "flat" else nested(flat)
    victim = "features.18.1.bias"
    cases = (
        ({k: v for k, v in state.items() if k != victim}, r"1 missing \(last.norm.bias\)"),
        ({**state, "features.19.weight": torch.zeros(1)}, r"1 unexpected \(features.19.weight\)"),
        ({**state, victim: torch.zeros(3)}, r"last.norm.bias: expected \[1280\], got \[3\]"),
    )
    for number, (bad, message) in enumerate(cases):
        path = write(bad, tmp_path / f"{number}.pth")
        with pytest.raises(ValueError, match=message):
            liteseg.create_model("liteseg_mobilenetv2", backbone_weights=path)


def test_wrong_use(flat: StateDict, tmp_path: Path) -> None:
    path = write(flat, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="expected a mobilenetv2 or timm model, got shufflenet"):
        liteseg.create_model("liteseg_shufflenet", backbone_weights=path)
    with pytest.raises(ValueError, match="existing"):
        liteseg.create_model("liteseg_mobilenetv2", backbone_weights=tmp_path / "missing.pth")
    other = write({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="MobileNetV2 keys.*conv1.weight"):
        liteseg.create_model("liteseg_mobilenetv2", backbone_weights=other)
