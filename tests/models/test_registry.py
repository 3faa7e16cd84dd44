from __future__ import annotations

import subprocess
import sys

import pytest

import liteseg
from liteseg.models import ModelConfig


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
        "import sys, liteseg, liteseg.predict, liteseg.models.profile\n"
        "heavy = {'lightning', 'pytorch_lightning', 'av', 'jsonargparse', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(liteseg.predict) and callable(liteseg.profile) and callable(liteseg.models.profile)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
