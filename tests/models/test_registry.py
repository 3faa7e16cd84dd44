from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg.models import ModelConfig
from liteseg.models.imagenet import adapt_stem
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like


def test_names() -> None:
    names = liteseg.list_models()
    assert names == [
        *(f"{kind}_{b}" for kind in ("liteseg", "deeplabv3plus") for b in ("mobilenetv2", "shufflenet", "darknet19")),
        *("espnet", "erfnet", "enet", "segnet", "skipnet_mobilenet", "skipnet_shufflenet", "ccc2", "dsnet"),
    ]
    names.clear()
    assert liteseg.list_models()


def test_defaults() -> None:
    strides = {"mobilenetv2": 32, "shufflenet": 32, "darknet19": 16}
    for backbone, stride in strides.items():
        config = liteseg.create_model(f"liteseg_{backbone}").config
        assert config == ModelConfig(name=f"liteseg_{backbone}", backbone=backbone, output_stride=stride)
        assert config.num_classes == 19


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "liteseg_mobilenet"}, "liteseg_shufflenet.*did you mean 'liteseg_mobilenetv2'"),
        ({"name": "resnet"}, "expected one of liteseg_mobilenetv2"),
        ({"name": None}, "name: expected one of"),
        ({"name": 3}, "name: expected one of"),
        ({"seperable": True}, "unknown switch 'seperable'.*did you mean 'separable'"),
        ({"backbone": "darknet19"}, "unknown switch 'backbone'"),
        ({"output_stride": 4}, r"output_stride: expected one of \[8, 16, 32\]"),
        ({"output_stride": "16"}, "output_stride: expected one of .* got '16'"),
        ({"name": "liteseg_shufflenet", "output_stride": 8}, r"\[16, 32\]"),
        ({"name": "liteseg_darknet19", "output_stride": 8}, r"\[16, 32\]"),
        ({"num_classes": 0}, "num_classes: expected an integer of at least 1, got 0"),
        ({"num_classes": -3}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"filters": 0}, "filters"),
        ({"rates": ()}, "rates"),
        ({"rates": (3, 0)}, "rates"),
        ({"rates": 6}, "rates"),
        ({"separable": "yes"}, "separable: expected True or False, got 'yes'"),
        ({"deeper": 1}, "deeper"),
        ({"class_names": ("a", "b")}, "class_names: expected 19 names"),
        ({"class_names": 5}, "class_names"),
        ({"class_names": (1,) * 19}, "class_names"),
        ({"input_scale": 0}, "input_scale"),
        ({"input_scale": float("nan")}, "input_scale"),
        ({"input_scale": "big"}, "input_scale"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        liteseg.create_model(**{"name": "liteseg_mobilenetv2", **arguments})
    assert "\n" not in str(info.value)


def test_none_means_default() -> None:
    model = liteseg.create_model("liteseg_darknet19", None, None, output_stride=None, separable=None, class_names=None)
    assert model.config == liteseg.create_model("liteseg_darknet19").config


def test_public_names() -> None:
    for name in liteseg.__all__:
        assert getattr(liteseg, name) is not None
    assert set(liteseg.__all__) <= set(dir(liteseg))
    for function in ("create_model", "list_models", "load_weights", "save_weights", "profile", "fuse", "predict"):
        assert callable(getattr(liteseg, function))


def test_import_is_quiet_and_light() -> None:
    # after the submodules as well, `liteseg.predict` and `liteseg.profile` must stay functions
    code = (
        "import sys, liteseg.bench.record, liteseg.atomic\n"
        "assert 'torch' not in sys.modules\n"
        "import liteseg, liteseg.predict, liteseg.models.profile\n"
        "heavy = {'lightning', 'pytorch_lightning', 'av', 'jsonargparse', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(liteseg.predict) and callable(liteseg.profile) and callable(liteseg.models.profile)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("backbone", ["mobilenetv2", "shufflenet", "darknet19"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(backbone: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, 33, 47)
    model = trained_like(liteseg.create_model(f"liteseg_{backbone}", num_classes=3, in_channels=channels), x)
    with torch.inference_mode():
        expected = lk.to_reference(model)(x)
        fused = lk.fuse(model)
        for one in (model, fused):
            assert (one(x) - expected).norm() <= 1e-4 * expected.norm()
        if _loader.missing("cpu") is None:
            assert lk.explain(fused, x).plan == ("",)
        assert (liteseg.predict(fused, x) == expected.argmax(1)).float().mean() > 0.999
    path = tmp_path / "weights.safetensors"
    liteseg.save_weights(model, path)
    again = liteseg.create_model(weights=path)
    assert again.config.in_channels == channels and list(again.state_dict()) == list(model.state_dict())
    assert liteseg.profile(model, (64, 64)).params == sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match=f"in_channels: expected {channels} for the weights in .*, got 3"):
        liteseg.create_model(weights=path, in_channels=3)
    with pytest.raises(ValueError, match=rf"expected a normalised tensor \[N, {channels}, H, W\] .*, got an RGB"):
        liteseg.predict(model, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"LiteSeg: x: expected a tensor of shape \[N, {channels}, H, W\]"):
        model(torch.zeros(1, 3, 64, 64))


def test_wrong_input_channels_are_named() -> None:
    with pytest.raises(ValueError, match="in_channels: expected an integer of at least 1, got 0"):
        liteseg.create_model("liteseg_shufflenet", in_channels=0)
    with pytest.raises(ValueError, match="in_channels: expected none, enet takes"):
        liteseg.create_model("enet", in_channels=4)
    with pytest.raises(ValueError, match="in_channels: expected 3 for the weights in .*camvid.*, got 4"):
        liteseg.create_model(weights="camvid", in_channels=4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_imagenet_stems_are_adapted(channels: int) -> None:
    weight = torch.randn(8, 3, 3, 3)
    adapted = adapt_stem(weight, channels)
    assert adapted.shape == (8, channels, 3, 3)
    grey = torch.randn(1, 1, 5, 5)
    if channels != 4:
        # the same grey in all colours
        torch.testing.assert_close(
            nn.functional.conv2d(grey.expand(-1, channels, -1, -1), adapted),
            nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight),
            rtol=1e-4,
            atol=1e-4,
        )
    else:
        torch.testing.assert_close(adapted[:, 3], weight[:, 0] * 0.75)
