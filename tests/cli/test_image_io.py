"""Reading pictures of every kind, writing files whole or not at all, colours."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from liteseg.atomic import atomic_path
from liteseg.data import CAMVID_CLASSES, CAMVID_PALETTE, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from liteseg.data.tables import default_palette
from liteseg.image_io import add_legend, overlay, write_image, write_labels
from liteseg.palette import colorize, palette_for
from liteseg.reading import read_image

from .conftest import picture


def test_exif_orientation_is_applied(tmp_path) -> None:
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned clockwise
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1)))
    stored.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png"), upright)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I"])
def test_modes_become_rgb(tmp_path, mode: str) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    if mode == "I;16":
        image, expected = Image.fromarray(grey.astype(np.uint16) * 257), rgb
    elif mode == "I":
        image, expected = Image.fromarray(grey.astype(np.int32) * 257), rgb
    elif mode == "1":
        image, expected = Image.fromarray(grey > 99), np.where(rgb > 99, 255, 0)
    elif mode == "P":
        image = Image.fromarray(255 - grey)
        image.putpalette([255 - v // 3 for v in range(768)])
        image, expected = image, rgb
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(grey).convert(mode)
        image.putalpha(0)
        expected = rgb
    else:
        image, expected = Image.fromarray(rgb).convert(mode), rgb
    assert image.mode == mode
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I", "I;16") else "picture.png")
    image.save(path)
    got = read_image(path)
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not a picture"), (b"hello" * 50, "not a picture"), ("half", "damaged picture"), ("head", "not a picture")],
)
def test_damaged_pictures_are_named(tmp_path, content, words) -> None:
    path = tmp_path / "bad.png"
    if isinstance(content, str):
        Image.fromarray(picture()).save(path)
        data = path.read_bytes()
        content = data[: len(data) // 2] if content == "half" else data[:40]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.png: .*{words}"):
        read_image(path)


def test_missing_picture_and_folder(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="none.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="expected a picture, got a folder"):
        read_image(tmp_path)


def test_floating_point_picture_is_refused(tmp_path) -> None:
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match="depth.tif.*expected samples of 8 or 16 bits"):
        read_image(tmp_path / "depth.tif")


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path) -> None:
    path = tmp_path / "labels.png"
    write_image(path, np.zeros((4, 4), np.uint8))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="power cut"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("power cut")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["labels.png"]


def test_written_labels_come_back_and_permissions_follow_the_umask(tmp_path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    old = os.umask(0o022)
    try:
        write_image(tmp_path / "deep" / "labels.png", labels)
    finally:
        os.umask(old)
    with Image.open(tmp_path / "deep" / "labels.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.array(image), labels)
    assert (tmp_path / "deep" / "labels.png").stat().st_mode & 0o777 == 0o644


def test_label_files_hold_ids_of_eight_bits_under_the_classes_colours(tmp_path) -> None:
    labels = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    palette = ((9, 8, 7), (0, 0, 255), (1, 2, 3))
    write_labels(tmp_path / "a.png", labels, palette)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and np.array_equal(np.array(image), labels)
        assert np.array_equal(np.array(image.convert("RGB")), colorize(labels, palette))
    # the depth of a sample, behind signature, IHDR's length and name, width and height
    assert (tmp_path / "a.png").read_bytes()[24] == 8
    with pytest.raises(ValueError, match=r"write_labels: labels: expected uint8 \[H, W\], got int64"):
        write_labels(tmp_path / "a.png", labels.astype(np.int64), palette)


def test_overlay_by_confidence() -> None:
    image, labels = np.full((1, 3, 3), 100, np.uint8), np.array([[0, 0, 255]], np.uint8)
    painted = overlay(image, labels, ((200, 200, 200),), 0.5, np.array([[1.0, 0.5, 1.0]]))
    assert painted[0, :, 0].tolist() == [150, 125, 100]
    with pytest.raises(ValueError, match=r"overlay: confidence: expected \[1, 3\] as the labels have it, got \[3\]"):
        overlay(image, labels, ((200, 200, 200),), 0.5, np.ones(3))


def test_write_image_refuses_other_arrays(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W\] or \[H, W, 3\], got int64"):
        write_image(tmp_path / "a.png", np.zeros((4, 4), np.int64))


def test_overlay_mixes_and_keeps_void() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 255]], np.uint8)
    palette = ((200, 0, 50), (0, 0, 0))
    assert overlay(image, labels, palette, 0.5).tolist() == [[[150, 50, 75], [50, 50, 50], [100, 100, 100]]]
    assert np.array_equal(overlay(image, labels, palette, 0.0), image)
    assert overlay(image, labels, palette, 1.0)[0, :2].tolist() == [[200, 0, 50], [0, 0, 0]]
    white = np.full((1, 1, 3), 255, np.uint8)
    assert overlay(white, np.zeros((1, 1), np.uint8), ((255, 255, 255),), 0.3).tolist() == [[[255, 255, 255]]]
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1, got 1.5"):
        overlay(image, labels, palette, 1.5)
    with pytest.raises(ValueError, match=r"image: expected uint8 \[1, 3, 3\]"):
        overlay(image[:, :2], labels, palette)


def test_colorize_checks_ids_and_palette() -> None:
    assert colorize(np.array([[1, 255]], np.uint8), ((9, 9, 9), (1, 2, 3))).tolist() == [[[1, 2, 3], [0, 0, 0]]]
    with pytest.raises(ValueError, match=r"expected ids 0..1 or 255, got \[2, 7\]"):
        colorize(np.array([[0, 2, 7]], np.uint8), ((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ValueError, match="palette: expected integers 0..255"):
        colorize(np.zeros((1, 1), np.uint8), ((0, 0, 256),))
    with pytest.raises(ValueError, match="palette: expected 1 to 256 rows"):
        colorize(np.zeros((1, 1), np.uint8), ((0, 0),))


def test_palettes() -> None:
    assert palette_for(CAMVID_CLASSES, 11) == CAMVID_PALETTE
    assert palette_for([name.upper() for name in CITYSCAPES_CLASSES], 19) == CITYSCAPES_PALETTE
    invented = palette_for(None, 255)
    assert len(set(invented)) == 255 and (0, 0, 0) not in invented
    assert palette_for(("cat", "dog"), 2) == default_palette(40)[:2]


def test_legend_lists_every_class_beside_the_picture() -> None:
    image = picture()
    shown = add_legend(image, CAMVID_PALETTE, CAMVID_CLASSES)
    assert np.array_equal(shown[: image.shape[0], : image.shape[1]], image)
    strip = {tuple(p) for p in shown[:, image.shape[1] :].reshape(-1, 3).tolist()}
    assert set(CAMVID_PALETTE) <= strip
    with pytest.raises(ValueError, match="class_names: expected 11 names, got 1"):
        add_legend(image, CAMVID_PALETTE, ["road"])
