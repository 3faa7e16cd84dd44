"""evaluate and the submission writer on small data sets made here."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import liteseg
from liteseg.data import CITYSCAPES_TRAIN_TO_LABEL, MEAN, STD, dataset
from liteseg.evaluate import center_crop, evaluate, parse_crop
from liteseg.submission import submission_name, write_submission

from .conftest import picture

SIZES = ((64, 96), (80, 64), (64, 96))


@pytest.fixture
def camvid(tmp_path) -> Path:
    """CamVid folders with three test images; labels 0..9 and void 11, so class 10 is absent from the truth."""
    rng = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for folder in ("test", "testannot"):
        (root / folder).mkdir(parents=True)
    for i, size in enumerate(SIZES):
        Image.fromarray(picture(i, size)).save(root / "test" / f"{i}.png")
        labels = rng.integers(0, 10, size).astype(np.uint8)
        labels[rng.random(size) < 0.1] = 11
        Image.fromarray(labels).save(root / "testannot" / f"{i}.png")
    return root


@pytest.fixture
def cityscapes(tmp_path) -> Path:
    """The unpacked zips' folders: two test images without labels, one val image with labelIds."""
    root = tmp_path / "cityscapes"
    for i, (split, city) in enumerate((("test", "berlin"), ("test", "bonn"), ("val", "ulm"))):
        folder = root / "leftImg8bit" / split / city
        folder.mkdir(parents=True)
        Image.fromarray(picture(i)).save(folder / f"{city}_000000_{i:06}_leftImg8bit.png")
    labels = root / "gtFine" / "val" / "ulm"
    labels.mkdir(parents=True)
    ids = np.random.default_rng(0).integers(0, 34, (64, 96)).astype(np.uint8)
    Image.fromarray(ids).save(labels / "ulm_000000_000002_gtFine_labelIds.png")
    return root


def normalised(image: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def direct_matrix(model, root: Path, crop=None, scale: float = 1.0, flip: bool = False) -> np.ndarray:
    """Counts from full-size logits in plain torch, pixel by pixel."""
    matrix = np.zeros((11, 11), dtype=np.int64)
    for i in range(len(SIZES)):
        image = np.array(Image.open(root / "test" / f"{i}.png"))
        label = np.array(Image.open(root / "testannot" / f"{i}.png"))
        if crop is not None:
            top, left = (image.shape[0] - crop[0]) // 2, (image.shape[1] - crop[1]) // 2
            image = image[top : top + crop[0], left : left + crop[1]]
            label = label[top : top + crop[0], left : left + crop[1]]
        x = normalised(image)
        if scale != 1:
            size = [round(side * scale) for side in label.shape]
            x = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        with torch.no_grad():
            logits = model.low_resolution_logits(x)
            if flip:
                logits = (logits + model.low_resolution_logits(x.flip(-1)).flip(-1)) / 2
            full = nn.functional.interpolate(logits, size=label.shape, mode="bilinear", align_corners=True)
        predicted = full.argmax(1)[0].numpy()
        for truth, guess in zip(label.ravel(), predicted.ravel(), strict=True):
            if truth != 11:
                matrix[truth, guess] += 1
    return matrix


@pytest.mark.parametrize(
    "options",
    [{}, {"crop": "center:48x60"}, {"scale": 1.5}, {"flip": True}],
    ids=["whole", "crop", "scale", "flip"],
)
def test_matrix_equals_direct_counts(model, camvid, options) -> None:
    result = evaluate(model, dataset("camvid", camvid, "test"), **options)
    crop = parse_crop(options.get("crop"))
    expected = direct_matrix(model, camvid, crop, options.get("scale", 1.0), options.get("flip", False))
    # one label map in ten thousand may differ where two logits tie
    assert np.abs(result.matrix.matrix - expected).sum() <= 2 * expected.sum() / 10000
    assert result.matrix.pixels == expected.sum()
    assert result.images == 3
    hits = np.diag(result.matrix.matrix)
    union = result.matrix.matrix.sum(0) + result.matrix.matrix.sum(1) - hits
    present = union > 0
    np.testing.assert_allclose(result.class_iou[present], hits[present] / union[present])
    assert result.mean_iou == pytest.approx((hits[present] / union[present]).mean())
    assert result.pixel_accuracy == pytest.approx(hits.sum() / expected.sum())


def test_model_mode_is_restored(model, camvid) -> None:
    model.train()
    try:
        evaluate(model, dataset("camvid", camvid, "test"))
        assert model.training and model.classifier.training
    finally:
        model.eval()


def test_input_scale_of_the_weights_is_the_default(model, camvid) -> None:
    scaled = liteseg.create_model("liteseg_mobilenetv2", num_classes=11, input_scale=1.5)
    scaled.load_state_dict(model.state_dict())
    data = dataset("camvid", camvid, "test")
    by_default = evaluate(scaled, data)
    assert by_default.settings["scale"] == 1.5
    assert np.array_equal(by_default.matrix.matrix, evaluate(model, data, scale=1.5).matrix.matrix)


def test_center_crop_is_the_middle() -> None:
    array = np.arange(20).reshape(4, 5)
    assert center_crop(array, (2, 3)).tolist() == [[6, 7, 8], [11, 12, 13]]
    # odd remainders are rounded half to even: 0.5 to 0, 1.5 to 2
    assert center_crop(np.arange(5)[:, None], (4, 1))[0, 0] == 0
    assert center_crop(np.arange(7)[:, None], (4, 1))[0, 0] == 2


@pytest.mark.parametrize("crop", ["512x1024", "center:512", "center:0x9", "left:5x5", "center:-1x5"])
def test_bad_crop(crop) -> None:
    with pytest.raises(ValueError, match='crop: expected "center:HEIGHTxWIDTH"'):
        parse_crop(crop)


def test_command_prints_and_writes_the_scores(run, model, weights, camvid, tmp_path) -> None:
    json_file, csv_file = tmp_path / "r" / "result.json", tmp_path / "result.csv"
    code, printed, err = run(
        *("evaluate", "--weights", weights, "--data", camvid, "--dataset", "camvid", "--split", "test", "--no-fuse"),
        *("--json", json_file, "--csv", csv_file),
    )
    assert code == 0 and "3/3" in err
    expected = evaluate(model, dataset("camvid", camvid, "test"))
    assert re.search(rf"^mean IoU +{100 * expected.mean_iou:.2f}$", printed, re.MULTILINE)
    assert "3 images, void ignored" in printed and "split test" in printed
    values = json.loads(json_file.read_text())
    assert values["matrix"] == expected.matrix.matrix.tolist()
    assert values["mean_iou"] == pytest.approx(expected.mean_iou)
    assert values["images"] == 3 and values["settings"]["dataset"] == "camvid"
    rows = list(csv.reader(csv_file.open()))
    assert rows[0] == ["kind", "name", "value"]
    scores = {(kind, name): value for kind, name, value in rows[1:]}
    assert float(scores["mean_iou", ""]) == pytest.approx(expected.mean_iou, abs=1e-6)
    assert float(scores["class_iou", "sky"]) == pytest.approx(expected.class_iou[0], abs=1e-6)


def test_cityscapes_has_category_scores(run, cityscapes_weights, cityscapes, tmp_path) -> None:
    code, printed, _ = run(
        *("evaluate", "--weights", cityscapes_weights, "--data", cityscapes, "--dataset", "cityscapes", "--quiet"),
        *("--json", tmp_path / "r.json"),
    )
    assert code == 0
    assert "mean category IoU" in printed and "vehicle" in printed
    values = json.loads((tmp_path / "r.json").read_text())
    assert len(values["category_iou"]) == 7 and len(values["class_iou"]) == 19


def test_submission_holds_server_label_maps(run, cityscapes_weights, cityscapes, tmp_path) -> None:
    out = tmp_path / "send" / "out.zip"
    code, printed, _ = run(
        *("evaluate", "--weights", cityscapes_weights, "--data", cityscapes, "--dataset", "cityscapes"),
        *("--split", "test", "--submission", out, "--quiet", "--no-fuse"),
    )
    assert code == 0 and "2 label maps" in printed
    assert [p.name for p in out.parent.iterdir()] == ["out.zip"]
    model = liteseg.create_model(weights=cityscapes_weights).eval()
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["berlin_000000_000000.png", "bonn_000000_000001.png"]
        with Image.open(io.BytesIO(archive.read("bonn_000000_000001.png"))) as image:
            assert image.mode == "L" and image.size == (2048, 1024)
            ids = np.array(image)
    assert set(np.unique(ids)) <= set(CITYSCAPES_TRAIN_TO_LABEL)
    with torch.no_grad():
        logits = model.low_resolution_logits(normalised(picture(1)))
        full = nn.functional.interpolate(logits, size=(1024, 2048), mode="bilinear", align_corners=True)
    expected = np.array(CITYSCAPES_TRAIN_TO_LABEL)[full.argmax(1)[0].numpy()]
    assert (ids == expected).mean() >= 0.9999


def test_failed_submission_leaves_nothing(cityscapes_weights, cityscapes, tmp_path) -> None:
    model = liteseg.create_model(weights=cityscapes_weights)
    data = dataset("cityscapes", cityscapes, "test")
    data.items[1] = data.items[0]
    with pytest.raises(ValueError, match="expected one image named berlin_000000_000000.png"):
        write_submission(model, data, tmp_path / "send" / "out.zip")
    assert list((tmp_path / "send").iterdir()) == []


def test_submission_names() -> None:
    assert submission_name("x/berlin_000000_000019_leftImg8bit.png") == "berlin_000000_000019.png"
    with pytest.raises(ValueError, match="photo.png: expected a name like berlin_000000_000019_leftImg8bit.png"):
        submission_name("photo.png")


def test_refused_evaluations(refused, weights, cityscapes_weights, camvid, cityscapes, tmp_path) -> None:
    base = ("evaluate", "--weights", weights, "--data", camvid, "--dataset", "camvid", "--quiet")
    test = (*base, "--split", "test")
    assert "expected images of at least 70x70, got 64x96" in refused(*test, "--crop", "center:70x70")
    assert "crop: expected" in refused(*test, "--crop", "half")
    assert "at least 32 after scaling by 0.4, got 26x38" in refused(*test, "--scale", "0.4")
    assert "split: expected one of" in refused(*base, "--split", "holdout")
    assert "expected 11 classes as the data set has, got 19" in refused(
        "evaluate", "--weights", cityscapes_weights, *test[3:]
    )
    assert "--submission: expected a file name ending in .zip" in refused(*test, "--submission", tmp_path / "a.tar")
    assert "--submission: expected without --flip" in refused(*test, "--submission", tmp_path / "a.zip", "--flip")
    assert "expected 19 classes (Cityscapes)" in refused(*test, "--submission", tmp_path / "a.zip")
    assert "--json: expected a file name ending in .json" in refused(*test, "--json", tmp_path / "a.txt")
    assert "expected labels, got none" in refused(
        *("evaluate", "--weights", cityscapes_weights, "--data", cityscapes, "--dataset", "cityscapes"),
        *("--split", "test", "--quiet"),
    )
    assert "expected one of camvid, cityscapes, folder, " in refused(*test[:6], "voc", "--quiet")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("evaluate", "--weights", weights, "--data", tmp_path / "empty", "--dataset", "camvid")


def test_label_ids_out_of_range_name_the_file_and_the_ids(refused, weights, camvid) -> None:
    bad = np.full(SIZES[1], 200, np.uint8)
    Image.fromarray(bad).save(camvid / "testannot" / "1.png")
    line = refused(
        *("evaluate", "--weights", weights, "--data", camvid, "--dataset", "camvid", "--split", "test", "--quiet")
    )
    assert "1.png" in line and "200" in line and "0..10" in line
