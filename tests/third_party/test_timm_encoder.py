"""timm's backbones under LiteSeg's head. Needs what requirements.txt in this folder lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import liteseg
import liteseg_kernels as lk
from liteseg.explain import explain as in_words
from liteseg.models.encoders import TimmBackbone
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like
from tests.models.base import CLASSES, BaseModelTester, largest_difference
from tests.third_party.beside_cpu_torch import torchvision_imports

if torchvision_imports() is not None:
    pytest.skip(f"timm needs torchvision: {torchvision_imports()}", allow_module_level=True)
timm = pytest.importorskip("timm")

ENCODER = "timm/mobilenetv3_large_100"


class TestMobileNetV3(BaseModelTester):
    name = "liteseg"
    switches = {"encoder": ENCODER}

    # timm's own norms refuse a single value a channel
    @pytest.mark.parametrize(("batch", "size"), [(2, (64, 96)), (1, (64, 96))])
    def test_training_step(self, batch: int, size: tuple[int, int]) -> None:
        super().test_training_step(batch, size)


class TestDense(BaseModelTester):
    """A low-level feature that is reduced, and a denser encoded one."""

    name = "liteseg"
    switches = {"encoder": "timm/resnet18", "output_stride": 16}


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize(
    ("name", "low_level", "encoded", "reduced"),
    [
        ("mobilenetv3_large_100", 24, 960, None),
        ("efficientnet_lite0", 24, 320, None),
        ("resnet18", 64, 512, 48),
        ("regnetx_002", 24, 368, None),
    ],
)
@torch.no_grad()
def test_features(name: str, low_level: int, encoded: int, reduced: int | None, output_stride: int) -> None:
    with torch.device("meta"):
        model = liteseg.create_model("liteseg", encoder=f"timm/{name}", output_stride=output_stride).eval()
        maps = model.backbone(torch.empty(1, 3, 360, 640))
    size = tuple(-(-length // output_stride) for length in (360, 640))
    assert [tuple(m.shape[1:]) for m in maps] == [(low_level, 90, 160), (encoded, *size)]
    assert (model.backbone.low_level_channels, model.backbone.out_channels) == (low_level, encoded)
    assert model.backbone.decoder_channels == reduced and (model.reduce is None) == (reduced is None)


@torch.no_grad()
def test_maps_with_channels_last() -> None:
    model = trained_like(liteseg.create_model("liteseg", CLASSES, encoder="timm/mambaout_femto"))
    x = torch.randn(1, 3, 64, 96)
    low_level, encoded = model.backbone(x)
    assert (low_level.shape, encoded.shape) == ((1, 48, 16, 24), (1, 288, 2, 3))
    assert largest_difference(liteseg.fuse(model)(x), model(x)) < 1e-4


def test_explain_says_what_is_fused() -> None:
    fused = liteseg.fuse(trained_like(liteseg.create_model("liteseg", CLASSES, encoder=ENCODER)))
    explained = lk.explain(fused, torch.zeros(1, 3, 64, 96))
    assert explained.fused == ("daspp", "decoder.0", "decoder.1") and not explained.plan
    assert explained.refused["backbone"] == "no block of this library is in it, torch runs its modules one by one"
    if _loader.missing("cpu") is None:
        with torch.inference_mode():
            refused = lk.explain(fused, torch.zeros(1, 3, 64, 96)).refused[""]
        assert refused == f"no plan, {ENCODER} runs by timm's modules"
    assert "backbone: not fused" in in_words(fused, (64, 96))


@pytest.mark.parametrize("in_channels", [3, 4])
def test_weights_of_timms_whole_model(in_channels: int, tmp_path: Path) -> None:
    whole = trained_like(timm.create_model("mobilenetv3_large_100"))
    path = tmp_path / "mobilenetv3.pth"
    torch.save(whole.state_dict(), path)
    model = liteseg.create_model("liteseg", encoder=ENCODER, in_channels=in_channels, backbone_weights=path)
    stem = model.backbone.net.conv_stem.weight
    assert torch.equal(model.backbone.net.blocks[6][0].conv.weight, whole.blocks[6][0].conv.weight)
    assert stem.shape[1] == in_channels
    if in_channels == 3:
        assert torch.equal(stem, whole.conv_stem.weight)


def test_weights_files_name_their_encoder(tmp_path: Path) -> None:
    model = liteseg.create_model("liteseg", CLASSES, encoder=ENCODER, output_stride=16)
    path = tmp_path / "mine.safetensors"
    liteseg.save_weights(model, path)
    again = liteseg.create_model("liteseg", encoder=ENCODER, weights=path)
    assert again.config == model.config and again.config.backbone == ENCODER
    other = liteseg.create_model("liteseg", 7, encoder=ENCODER, weights=path, weights_mode="backbone", filters=32)
    assert torch.equal(other.backbone.net.conv_stem.weight, model.backbone.net.conv_stem.weight)
    with pytest.raises(ValueError, match="encoder: expected 'timm/mobilenetv3_large_100' for the weights in"):
        liteseg.create_model("liteseg", encoder="timm/resnet18", weights=path)
    # a bare state dict does not say which one it is
    bare = tmp_path / "bare.pth"
    torch.save(model.state_dict(), bare)
    again = liteseg.create_model("liteseg", CLASSES, encoder=ENCODER, weights=bare)
    assert torch.equal(again.backbone.net.conv_stem.weight, model.backbone.net.conv_stem.weight)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("no_such_model", 32, "encoder: timm/no_such_model: timm refuses .*no_such_model"),
        ("vgg11_bn", 16, "encoder: timm/vgg11_bn: timm refuses .*'output_stride': 16"),
        (
            "vit_tiny_patch16_224",
            32,
            "encoder: timm/vit_tiny_patch16_224: expected maps at strides 4 and, last, 32, got",
        ),
    ],
)
def test_what_timm_cannot_give(name: str, output_stride: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(f"timm/{name}", output_stride)
