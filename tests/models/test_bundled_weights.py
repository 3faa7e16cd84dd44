"""The weights in the package: what they are, and that they give the scores that the README and their card state."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
from liteseg.data import dataset
from liteseg.evaluate import evaluate
from tests.data import street_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "liteseg" / "weights"


def test_camvid_is_bundled_with_its_card() -> None:
    assert "camvid_mobilenetv2" in liteseg.list_weights()
    model = liteseg.create_model(weights="camvid")
    assert (model.config.name, model.config.num_classes, model.config.input_scale) == ("liteseg_mobilenetv2", 11, 1.5)
    file = FOLDER / "camvid_mobilenetv2.safetensors"
    assert file.stat().st_size < 7e6
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (FOLDER / "README.md").read_text()


def test_it_sees_a_street() -> None:
    model = liteseg.fuse(liteseg.create_model(weights="camvid"))
    labels = liteseg.predict(model, Image.open(street_file()))
    names = model.config.class_names
    assert names is not None
    share = {name: float((labels == index).mean()) for index, name in enumerate(names)}
    # the picture: a road between a row of houses and a fence, trees behind, a car on the right
    assert names[labels[330, 240]] == "road" and names[labels[60, 400]] == "building"
    assert names[labels[210, 405]] == "car" and names[labels[50, 240]] == "sky"
    assert share["road"] > 0.2 and share["building"] > 0.1 and share["tree"] > 0.1


def test_fused_labels_are_those_of_plain_pytorch_on_real_pictures(shared: Path) -> None:
    model = liteseg.create_model(weights="camvid").eval()
    fused = liteseg.fuse(model)
    plain = model.to_reference()
    images = dataset("camvid", shared / "data" / "camvid", "test")
    equal, exact, approximate, torch_error = [], model.to_reference().double(), [], []
    for index in range(0, len(images), 60):
        pixels = images.load(index).image
        equal.append((liteseg.predict(fused, pixels) == liteseg.predict(plain, pixels)).mean())
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            truth = exact(x.double())
            approximate.append(((fused(x) - truth).norm() / truth.norm()).item())
            torch_error.append(((plain(x) - truth).norm() / truth.norm()).item())
    assert np.mean(equal) >= 0.9999
    assert np.mean(approximate) <= 3 * np.mean(torch_error)


@pytest.mark.slow
def test_scores_are_those_of_the_card(shared: Path) -> None:
    model = liteseg.fuse(liteseg.create_model(weights="camvid"))
    result = evaluate(model, dataset("camvid", shared / "data" / "camvid", "test"), progress=False)
    mean_iou = 100 * result.matrix.mean_iou()
    for text in ((FOLDER / "README.md").read_text(), (ROOT / "README.md").read_text()):
        stated = [float(number) for number in re.findall(r"\b\d\d\.\d\d\b", text)]
        assert min(abs(number - mean_iou) for number in stated) < 0.05
