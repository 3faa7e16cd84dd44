"""`create_model("liteseg", encoder=...)` without timm installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import liteseg
from liteseg.errors import UserError
from liteseg.models import ModelConfig
from liteseg.models.encoders import ENCODERS


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_own_encoders_have_names(encoder: str) -> None:
    with torch.device("meta"):
        model = liteseg.create_model("liteseg", encoder=encoder)
        assert model.config == liteseg.create_model(f"liteseg_{encoder}").config
        assert liteseg.create_model(encoder=encoder).config == model.config
    assert "liteseg" not in liteseg.list_models()


def test_weights_know_their_encoder() -> None:
    for arguments in ({}, {"name": "liteseg"}):
        model = liteseg.create_model(**arguments, encoder="mobilenetv2", weights="camvid")
        assert model.config.name == "liteseg_mobilenetv2"
    with pytest.raises(ValueError, match="create_model: encoder: expected 'mobilenetv2' for the weights in"):
        liteseg.create_model(encoder="shufflenet", weights="camvid")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "liteseg"}, "encoder: expected one of mobilenetv2, .*, timm/<model>, got none"),
        ({"name": "liteseg", "encoder": "mobilenetv22"}, r"got 'mobilenetv22' \(did you mean 'mobilenetv2'\?\)"),
        ({"name": "liteseg", "encoder": 3}, "encoder: expected one of .*, got 3"),
        ({"name": "liteseg_shufflenet", "encoder": "mobilenetv2"}, "encoder: expected none, liteseg_shufflenet has"),
        ({"name": "liteseg", "encoder": "timm/x", "output_stride": 4}, "output_stride: expected one of .8, 16, 32."),
    ],
)
def test_wrong_encoders(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        liteseg.create_model(**arguments)


def test_missing_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'timm/resnet18 needs the package "timm".*pip install --no-deps timm'):
        liteseg.create_model("liteseg", encoder="timm/resnet18")
    # files that name such an encoder can be read all the same
    assert ModelConfig("liteseg", "timm/resnet18", output_stride=8).to_dict()["backbone"] == "timm/resnet18"


def test_authors_have_no_such_backbone() -> None:
    with torch.device("meta"):
        model = liteseg.create_model("liteseg", encoder="mobilenetv2")
    model.config = ModelConfig("liteseg", "timm/resnet18")
    with pytest.raises(ValueError, match="export_official: model: expected a backbone of the authors"):
        liteseg.models.official.to_official(model)
