"""Models in the hub's form: a folder with weights, configuration and a card, and back. Nothing leaves the machine."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import liteseg
from liteseg.errors import MissingExtraError
from liteseg.models import LiteSeg, hub
from liteseg_kernels.testing import trained_like


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = importlib.util.spec_from_file_location("hub_without_the_extra", hub.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    for method in (without.Hub().save_pretrained, without.Hub().push_to_hub, without.Hub.from_pretrained):
        with pytest.raises(MissingExtraError, match=r'pip install "liteseg\[hub\]"'):
            method("folder")


@pytest.mark.parametrize("name", ["liteseg_shufflenet", "enet"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    mixin = pytest.importorskip("huggingface_hub", reason="needs liteseg[hub]").PyTorchModelHubMixin
    example = torch.randn(1, 3, 64, 96)
    switches = {"output_stride": 16} if name.startswith("liteseg") else {}
    fresh = liteseg.create_model(name, 3, class_names=("grass", "path", "sky"), input_scale=1.5, **switches)
    model = trained_like(fresh, example).eval()
    assert isinstance(model, mixin)
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == model.config.to_dict()
    card = (folder / "README.md").read_text()
    assert f"# {name}\n" in card and "grass, path, sky" in card and "resized by 1.5" in card
    assert "library_name: liteseg" in card and "{{" not in card
    again = type(model).from_pretrained(folder)
    assert again.config == model.config and not again.training
    # the weights alone are a weights file like any other
    other = liteseg.create_model(weights=folder / "model.safetensors").eval()
    with torch.inference_mode():
        expected = model(example)
        assert torch.equal(again(example), expected) and torch.equal(other(example), expected)


def test_a_card_of_ones_own_stays_and_another_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs liteseg[hub]")
    (tmp_path / "README.md").write_text("mine")
    liteseg.fuse(liteseg.create_model("liteseg_shufflenet", 2)).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert LiteSeg.from_pretrained(tmp_path).config.num_classes == 2
    with pytest.raises(ValueError, match="from_pretrained: expected a ENet in .*, got liteseg_shufflenet"):
        type(liteseg.create_model("enet")).from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"path of an existing file, got '.*model\.safetensors'"):
        LiteSeg.from_pretrained(tmp_path / "empty")
