from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg.models.encoders import ENCODERS, Darknet19, Encoder
from liteseg_kernels.testing import trained_like
from tests.models.base import BaseModelTester, RegistryModelTester, check_compile


class TestLiteSegMobileNetV2(RegistryModelTester):
    name = "liteseg_mobilenetv2"

    @pytest.mark.slow
    def test_compile_inductor(self, model: nn.Module) -> None:
        check_compile(model, "inductor")


class TestLiteSegShuffleNet(RegistryModelTester):
    name = "liteseg_shufflenet"


class TestLiteSegDarknet19(RegistryModelTester):
    name = "liteseg_darknet19"


class TestDeepLabMobileNetV2(RegistryModelTester):
    name = "deeplabv3plus_mobilenetv2"


class TestDeepLabShuffleNet(RegistryModelTester):
    name = "deeplabv3plus_shufflenet"
    # the encoder is compiled with LiteSeg, the rest with MobileNetV2
    test_compile = test_compile_fused = None


class TestDeepLabDarknet19(RegistryModelTester):
    name = "deeplabv3plus_darknet19"
    # the encoder is compiled with LiteSeg, the rest with MobileNetV2
    test_compile = test_compile_fused = None
    # pools round down: two pixels at stride 32
    smallest_export = 64


class TestStandardConvolutions(BaseModelTester):
    name = "liteseg_mobilenetv2"
    switches = {"separable": False}


class TestNoResiduals(BaseModelTester):
    name = "liteseg_shufflenet"
    switches = {"short_residual": False, "long_residual": False, "filters": 32, "rates": (2, 4)}


class TestDilatedMobileNetV2(BaseModelTester):
    name = "liteseg_mobilenetv2"
    switches = {"output_stride": 8, "deeper": False}


def test_every_registered_model_is_tested() -> None:
    # not at the top: their test classes would be collected here too
    from tests.models import test_paper_peers
    from tests.models.test_peers import RegistryPeerTester

    testers = [*RegistryModelTester.__subclasses__(), *RegistryPeerTester.__subclasses__()]
    testers += [one for name, one in vars(test_paper_peers).items() if name.startswith("Test")]
    assert {tester.name for tester in testers} == set(liteseg.list_models())


@pytest.mark.parametrize("backbone", ["mobilenetv2", "shufflenet"])
@torch.no_grad()
def test_dilation_replaces_stride(backbone: str) -> None:
    # positions that the strided network computes, the dilated one must compute alike
    x = torch.randn(1, 3, 90, 131, dtype=torch.float64)
    encoder = ENCODERS[backbone]
    strided = trained_like(encoder(32), torch.randn(2, 3, 64, 96)).double()
    low, encoded = strided(x)
    for output_stride in encoder.output_strides[1:]:
        dilated = encoder(output_stride).double().eval()
        dilated.load_state_dict(strided.state_dict())
        dilated_low, dilated_encoded = dilated(x)
        step = 32 // output_stride
        assert dilated_encoded.shape[-2:] == tuple(-(-length // output_stride) for length in x.shape[-2:])
        torch.testing.assert_close(dilated_encoded[..., ::step, ::step], encoded, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dilated_low, low, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("backbone", "output_stride", "low", "encoded"),
    [
        ("mobilenetv2", 32, (24, 90, 160), (1280, 12, 20)),
        ("mobilenetv2", 16, (24, 90, 160), (1280, 23, 40)),
        ("mobilenetv2", 8, (24, 90, 160), (1280, 45, 80)),
        ("shufflenet", 32, (384, 45, 80), (1536, 12, 20)),
        ("shufflenet", 16, (384, 45, 80), (1536, 23, 40)),
        ("darknet19", 16, (128, 90, 160), (1024, 22, 40)),
        ("darknet19", 32, (128, 90, 160), (1024, 11, 20)),
    ],
)
@torch.no_grad()
def test_feature_sizes_at_360x640(
    backbone: str, output_stride: int, low: tuple[int, ...], encoded: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        encoder = ENCODERS[backbone](output_stride)
        features = encoder(torch.empty(1, 3, 360, 640))
    assert [tuple(f.shape[1:]) for f in features] == [low, encoded]
    assert (low[0], encoded[0]) == (encoder.low_level_channels, encoder.out_channels)
    assert encoder.output_stride == output_stride


def test_darknet_at_stride_32_is_ordinary() -> None:
    encoder = Darknet19(32)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            assert module.dilation == (1, 1)
            assert module.padding[0] == module.kernel_size[0] // 2
    assert sum(isinstance(module, nn.MaxPool2d) for module in encoder.modules()) == 5


@pytest.mark.parametrize("name", ["liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19"])
def test_momentum_slope_and_bias(name: str) -> None:
    model = liteseg.create_model(name)
    darknet = name.endswith("darknet19")
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == (0.01 if darknet and path.startswith("backbone") else 0.1), path
            assert module.eps == 1e-5
        if isinstance(module, nn.LeakyReLU):
            assert darknet and module.negative_slope == 0.1
        if isinstance(module, nn.Conv2d):
            biased = path == "classifier" or (name.endswith("shufflenet") and path.startswith("backbone"))
            assert (module.bias is not None) == biased, path


def test_initial_weights() -> None:
    model = liteseg.create_model("liteseg_mobilenetv2")
    # N(0, sqrt(2 / (k*k*out))) in the backbone, Kaiming normal in the head's branches
    last = model.backbone.last.conv.weight
    assert abs(last.std().item() / (2 / 1280) ** 0.5 - 1) < 0.02
    depthwise = model.backbone.blocks[16].depthwise.conv.weight
    assert abs(depthwise.std().item() / (2 / (9 * 960)) ** 0.5 - 1) < 0.05
    pointwise = model.daspp.atrous[1].pointwise.weight
    assert abs(pointwise.std().item() / (2 / 1280) ** 0.5 - 1) < 0.02


@pytest.mark.parametrize("backbone", sorted(ENCODERS))
def test_residual_switches_change_the_widths(backbone: str) -> None:
    def inputs(**switches: bool) -> tuple[int, int]:
        with torch.device("meta"):
            model = liteseg.create_model(f"liteseg_{backbone}", **switches)
        return model.daspp.project.depthwise.in_channels, model.decoder[0].depthwise.in_channels

    encoded = ENCODERS[backbone].out_channels
    decoder = {"mobilenetv2": 120, "shufflenet": 144, "darknet19": 128}[backbone]
    assert inputs() == (encoded + 480, decoder)
    assert inputs(short_residual=False) == (480, decoder)
    assert inputs(long_residual=False) == (encoded + 480, 96)


def test_baseline_is_table_one_row_one() -> None:
    for backbone in ENCODERS:
        config = liteseg.create_model(f"deeplabv3plus_{backbone}").config
        assert config.output_stride == 32
        assert not (config.separable or config.deeper or config.short_residual)
        assert config.long_residual and config.rates == (3, 6, 9) and config.filters == 96


def test_an_encoder_states_what_the_network_needs() -> None:
    with pytest.raises(TypeError, match="Half: out_channels: expected a class attribute, got none"):

        class Half(Encoder):
            low_level_channels, output_strides = 8, (4,)

    with pytest.raises(ValueError, match=r"MobileNetV2: output_stride: expected one of \(32, 16, 8\), got 4"):
        ENCODERS["mobilenetv2"](4)


class Bare(Encoder):
    """Without a part of the plan."""

    low_level_channels, out_channels, output_strides = 8, 16, (4,)

    def __init__(self, output_stride: int = 4, in_channels: int = 3) -> None:
        super().__init__(output_stride, in_channels)
        self.stem = lk.ConvNormAct(in_channels, 8, 3, 4, activation="relu")
        self.last = lk.ConvNormAct(8, 16, 1, activation="relu")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        return x, self.last(x)


def test_an_encoder_in_the_registry_is_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENCODERS, "bare", Bare)
    assert {"liteseg_bare", "deeplabv3plus_bare"} < set(liteseg.list_models())
    model = trained_like(liteseg.create_model("liteseg_bare", 4), torch.randn(2, 3, 64, 96))
    x = torch.randn(1, 3, 40, 44)
    liteseg.save_weights(model, tmp_path / "bare.safetensors")
    again = liteseg.create_model(weights=tmp_path / "bare.safetensors").eval()
    fused = liteseg.fuse(again)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
        refused = lk.explain(fused, x).refused
    assert "backbone: expected Bare to have a lower() that describes its forward()" in refused[""]
    assert liteseg.profile(model, (64, 96)).params == sum(p.numel() for p in model.parameters())
