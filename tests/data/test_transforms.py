"""Augmentation and evaluation input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from liteseg.data import MEAN, STD, Augmentation, CamVid, Pipeline, Preparation, Sample, normalise
from liteseg_kernels import functional
from tests.data import folders

PATH = Path("picture.png")


def _sample(height: int = 40, width: int = 60) -> Sample:
    """Labels that equal a number which can also be read off the picture, pixel by pixel."""
    rows, columns = np.mgrid[:height, :width]
    label = ((rows // 8 + columns // 8) % 11).astype(np.uint8)
    return Sample(np.repeat(label[:, :, None] * 20, 3, axis=2), label, PATH, PATH)


def _pixels(packed: dict[str, Any]) -> np.ndarray:
    """[H, W, 3] in 0..255, the normalisation undone."""
    return (packed["image"].permute(1, 2, 0).numpy() * STD + np.array(MEAN)) * 255


def test_normalise() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = normalise(image)
    assert out.dtype == torch.float32 and out.shape == (3, 5, 7) and out.is_contiguous()
    assert np.allclose(out.numpy(), ((image / 255 - MEAN) / STD).transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_picture_and_labels_move_together(seed: int) -> None:
    augment = Augmentation(crop=(32, 48), scale=(0.5, 2.0), flip=0.5)
    packed = augment(_sample(), np.random.default_rng(seed))
    assert packed["image"].shape == (3, 32, 48) and packed["label"].shape == (32, 48)
    assert packed["label"].dtype == torch.uint8 and packed["path"] == str(PATH)
    label, pixels = packed["label"].numpy(), _pixels(packed)
    valid = label != 255
    # away from borders of the pattern both say the same; blurred borders are a minority
    agrees = np.abs(pixels[:, :, 0][valid] - 20.0 * label[valid]) < 1
    assert agrees.mean() > 0.4 and np.corrcoef(pixels[:, :, 0][valid], label[valid])[0, 1] > 0.75


def test_crop_without_scale_is_a_part_of_the_picture() -> None:
    sample = _sample(64, 96)
    packed = Augmentation(crop=(32, 40), scale=(1.0, 1.0), flip=0.0)(sample, np.random.default_rng(3))
    windows = np.lib.stride_tricks.sliding_window_view(sample.label, (32, 40))
    places = np.argwhere((windows == packed["label"].numpy()).all(axis=(2, 3)))
    assert len(places) >= 1
    top, left = places[0]
    assert np.allclose(_pixels(packed), sample.image[top : top + 32, left : left + 40], atol=1e-3)


def test_scaled_crop_equals_scaling_then_cropping() -> None:
    sample = _sample(40, 60)
    whole = Image.fromarray(sample.image).resize((120, 80), Image.Resampling.BILINEAR)
    crop = Augmentation(crop=(32, 32), scale=(2.0, 2.0), flip=0.0)(sample, np.random.default_rng(1))
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(whole)[:, :, 0].astype(float), (32, 32))
    distance = np.abs(windows - _pixels(crop)[:, :, 0]).max(axis=(2, 3))
    assert distance.min() <= 1.001


def test_flip() -> None:
    sample = _sample(32, 32)
    same, mirrored = (
        Augmentation(crop=(32, 32), scale=(1.0, 1.0), flip=flip)(sample, np.random.default_rng(0))
        for flip in (0.0, 1.0)
    )
    assert torch.equal(mirrored["image"], same["image"].flip(2)) and torch.equal(
        mirrored["label"], same["label"].flip(1)
    )
    assert not torch.equal(mirrored["label"], same["label"])


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_padding_is_void(fill: str) -> None:
    augment = Augmentation(crop=(64, 64), scale=(0.5, 0.5), flip=0.0, fill=fill, brightness=(0.5, 0.5))
    packed = augment(_sample(40, 60), np.random.default_rng(0))
    void = packed["label"].numpy() == 255
    assert void.sum() == 64 * 64 - 20 * 30
    colour = np.array(MEAN) * 255 if fill == "mean" else np.zeros(3)
    assert np.allclose(_pixels(packed)[void], colour, atol=1e-3)


def test_stretch_resizes_the_whole_picture() -> None:
    sample = _sample(40, 60)
    augment = Augmentation(crop=(32, 64), scale=(0.75, 0.75), flip=0.0, small="stretch")
    packed = augment(sample, np.random.default_rng(0))
    half = Image.fromarray(sample.image).resize((45, 30), Image.Resampling.BILINEAR)
    expected = np.asarray(half.resize((64, 32), Image.Resampling.BILINEAR))
    assert np.allclose(_pixels(packed), expected, atol=1e-3) and not (packed["label"] == 255).any()


def test_stretch_crops_what_is_large_enough() -> None:
    sample = _sample(40, 60)
    augment, padding = (Augmentation(crop=(32, 40), scale=(1.2, 1.2), small=rule) for rule in ("stretch", "pad"))
    first, second = (rule(sample, np.random.default_rng(5)) for rule in (augment, padding))
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["label"], second["label"])


def test_rotation_turns_both_and_voids_corners() -> None:
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    label = np.zeros((64, 64), dtype=np.uint8)
    image[:, 30:34], label[:, 30:34] = 0, 1
    turned = Augmentation(crop=(64, 64), scale=(1.0, 1.0), flip=0.0, rotate=45.0, fill="black")
    packed = turned(Sample(image, label, PATH, PATH), np.random.default_rng(0))
    out, pixels = packed["label"].numpy(), _pixels(packed)[:, :, 0]
    assert set(np.unique(out)) == {0, 1, 255} and (out[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert pixels[out == 0].mean() > 190 and pixels[out == 1].mean() < 40
    assert np.allclose(pixels[out == 255], 0.0, atol=60) and np.median(pixels[out == 255]) < 1
    # the bar is no longer upright
    assert (out[:, 30:34] == 1).mean() < 0.9


def test_brightness_and_contrast() -> None:
    sample = Sample(np.full((32, 32, 3), 100, np.uint8), np.zeros((32, 32), np.uint8), PATH, PATH)
    bright = Augmentation(crop=(32, 32), scale=(1.0, 1.0), brightness=(1.25, 1.25))(sample, np.random.default_rng(0))
    assert np.allclose(_pixels(bright), 125.0, atol=1e-3)
    sample.image[:16] = 200
    flat = Augmentation(crop=(32, 32), scale=(1.0, 1.0), contrast=(0.5, 0.5))(sample, np.random.default_rng(0))
    assert np.allclose(np.unique(_pixels(flat).round(3)), [125.0, 175.0])
    burnt = Augmentation(crop=(32, 32), scale=(1.0, 1.0), brightness=(2.0, 2.0))(sample, np.random.default_rng(0))
    assert _pixels(burnt).max() <= 255.001


def test_same_draw_for_same_epoch_and_index_whatever_loads_it(tmp_path: Path) -> None:
    root = folders.camvid(tmp_path, {"train": 4})
    data = CamVid(root, "train", transform=Augmentation(crop=(32, 32), brightness=(0.75, 1.25)), seed=7)
    order = [(3, 2), (3, 0), (4, 2), (3, 1)]
    alone = [data[key] for key in order]
    for workers in (0, 2):
        loaded = list(DataLoader(data, batch_size=None, sampler=order, num_workers=workers))
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, loaded, strict=True))
        assert all(torch.equal(a["label"], b["label"]) for a, b in zip(alone, loaded, strict=True))
    # another epoch, another seed: another picture
    assert not torch.equal(alone[0]["image"], alone[2]["image"])
    other = CamVid(root, "train", transform=data.transforms, seed=8)
    assert not torch.equal(alone[0]["image"], other[order[0]]["image"])


@pytest.mark.parametrize("scale", [1.0, 1.5, 0.7])
def test_preparation_is_the_input_that_predict_makes(scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    label = np.zeros((50, 61), np.uint8)
    packed = Preparation(scale)(Sample(image, label, PATH, PATH), np.random.default_rng(0))
    size = (round(50 * scale), round(61 * scale))
    expected = functional.preprocess(torch.from_numpy(image[None]), size, mean=MEAN, std=STD)
    assert packed["image"].shape == (3, *size) and packed["label"].shape == (50, 61)
    torch.testing.assert_close(packed["image"], expected[0], rtol=1e-5, atol=1e-5)


def test_no_label_no_training() -> None:
    sample = Sample(np.zeros((32, 32, 3), np.uint8), None, PATH, None)
    with pytest.raises(ValueError, match=r"picture\.png: no label"):
        Augmentation(crop=(32, 32))(sample, np.random.default_rng(0))
    assert "label" not in Preparation()(sample, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"crop": (16, 64)}, "augment: crop: expected height and width of at least 32"),
        ({"scale": (2.0, 1.0)}, "augment: scale: expected two rising numbers above 0"),
        ({"scale": (0.0, 1.0)}, "augment: scale"),
        ({"brightness": (-1.0, 1.0)}, "augment: brightness"),
        ({"contrast": (0.0, 0.0)}, "augment: contrast"),
        ({"flip": 1.5}, "augment: flip: expected a probability, got 1.5"),
        ({"rotate": -5.0}, "augment: rotate: expected degrees"),
    ],
)
def test_bad_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Augmentation(**options)


def test_bad_input_scale() -> None:
    with pytest.raises(ValueError, match="input_scale: expected a number above 0, got 0"):
        Preparation(0.0)


class _Compose:
    """Called as albumentations.Compose is: draws from a generator of its own, which can be seeded."""

    def __init__(self, change: Any = lambda image, mask: (image, mask)) -> None:
        self.change = change
        self.rng = np.random.default_rng()

    def set_random_seed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *, image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        shift = int(self.rng.integers(1, 30))
        image, mask = self.change(np.roll(image, shift, axis=1), np.roll(mask, shift, axis=1))
        return {"image": image, "mask": mask}


def test_pipelines_are_seeded_for_every_sample_and_normalised() -> None:
    sample, pipeline = _sample(), Pipeline(_Compose())
    seen = [pipeline(sample, np.random.default_rng((7, turn, 0))) for turn in (0, 1, 0)]
    assert torch.equal(seen[0]["image"], seen[2]["image"]) and not torch.equal(seen[0]["image"], seen[1]["image"])
    for packed in seen:
        # moved together
        assert np.allclose(_pixels(packed)[:, :, 0], packed["label"].numpy() * 20.0, atol=1e-3)
        assert packed["label"].dtype == torch.uint8 and packed["path"] == str(PATH)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda image, mask: (image / 255, mask), r"image: expected uint8 \[H, W, 3\] .*, got float64 \[40, 60, 3\]"),
        (lambda image, mask: (torch.from_numpy(image), mask), "image: expected uint8 .* got Tensor"),
        (lambda image, mask: (image, mask.astype(np.int64)), r"mask: expected uint8 \[H, W\] .* got int64"),
        (lambda image, mask: (image[:32], mask), r".* a mask of that size, got \[32, 60, 3\] and \[40, 60\]"),
        (lambda image, mask: (image[:31], mask[:31]), r".* at least 32x32 .* got \[31, 60, 3\]"),
    ],
)
def test_what_a_pipeline_must_give(change: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"transform: {text}"):
        Pipeline(_Compose(change))(_sample(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="no label: training needs one"):
        Pipeline(_Compose())(Sample(_sample().image, None, PATH, None), np.random.default_rng(0))


def test_albumentations() -> None:
    library = pytest.importorskip("albumentations")
    steps = [library.RandomCrop(32, 48), library.HorizontalFlip(p=0.5), library.RandomBrightnessContrast(p=0)]
    pipeline = Pipeline(library.Compose(steps))
    seen = [pipeline(_sample(), np.random.default_rng((0, turn))) for turn in range(8)]
    again = [pipeline(_sample(), np.random.default_rng((0, turn))) for turn in range(8)]
    assert all(torch.equal(one["image"], two["image"]) for one, two in zip(seen, again, strict=True))
    assert len({one["label"].numpy().tobytes() for one in seen}) > 4
    for packed in seen:
        assert packed["image"].shape == (3, 32, 48)
        assert np.allclose(_pixels(packed)[:, :, 0], packed["label"].numpy() * 20.0, atol=1e-3)
