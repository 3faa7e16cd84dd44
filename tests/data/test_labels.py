"""Label files of every kind: ids, palettes, colours, and pictures that lie on their side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liteseg.cli import main
from liteseg.data import (
    CAMVID_PALETTE,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_TO_LABEL,
    VOID,
    CamVid,
    Cityscapes,
    SegmentationDataset,
    dataset,
)
from liteseg.reading import turned
from tests.data import folders

SIZE = folders.SIZE
# every class and void, more than once
IDS = np.resize(np.arange(12, dtype=np.uint8), SIZE)
EXPECTED = np.where(IDS == 11, VOID, IDS)
COLOURS = np.array([*CAMVID_PALETTE, (0, 0, 0)], dtype=np.uint8)


@pytest.fixture
def camvid(tmp_path: Path) -> CamVid:
    return CamVid(folders.camvid(tmp_path / "camvid", {"train": 1}), "train")


def with_palette(ids: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(colours.astype(np.uint8).ravel().tolist())
    assert image.mode == "P"
    return image


def read(data: SegmentationDataset, image: Image.Image) -> np.ndarray:
    """The labels of item 0, whose file becomes this one."""
    path = data.items[0][1]
    assert path is not None
    image.save(path)
    return data.load(0).label


def test_palette_of_the_data_set(camvid: CamVid) -> None:
    assert np.array_equal(read(camvid, with_palette(IDS, COLOURS)), EXPECTED)
    ids = IDS.copy()
    ids[0] = 255
    # of void nothing is asked, whatever its colour
    for void in ((0, 0, 0), (224, 224, 192)):
        table = np.zeros((256, 3), np.uint8)
        table[:12], table[11], table[255] = COLOURS, void, void
        assert np.array_equal(read(camvid, with_palette(ids, table)), np.where(ids >= 11, VOID, ids))


def test_palette_made_anew_is_refused(camvid: CamVid) -> None:
    """A program that saves with a palette of its own gives classes other ids: none of these pixels would be right."""
    order = np.roll(np.arange(12), 1)
    permuted = with_palette(np.argsort(order).astype(np.uint8)[IDS], COLOURS[order])
    assert np.array_equal(np.asarray(permuted.convert("RGB")), COLOURS[IDS]), "the same picture"
    assert (np.asarray(permuted) == IDS).mean() == 0
    with pytest.raises(
        ValueError, match=r"train_000\.png: label palette: expected sky \(128, 128, 128\) for id 0, got"
    ):
        read(camvid, permuted)
    # Pillow's own way of making one
    with pytest.raises(ValueError, match=r"train_000\.png: label palette: expected"):
        read(camvid, Image.fromarray(COLOURS[IDS]).quantize(12))
    # a class's colour at void
    table = COLOURS.copy()
    table[11] = COLOURS[3]
    with pytest.raises(ValueError, match=r"label palette: expected void for id 11, got \(128, 64, 128\)"):
        read(camvid, with_palette(IDS, table))


def test_grey_palettes_show_their_ids(camvid: CamVid) -> None:
    grey = np.repeat(np.arange(256)[:, None], 3, axis=1)
    assert np.array_equal(read(camvid, with_palette(IDS, grey)), EXPECTED)
    # as programs pack grey pictures of few values
    assert np.array_equal(read(camvid, with_palette(11 - IDS, grey[11::-1])), EXPECTED)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_become_ids(camvid: CamVid, mode: str) -> None:
    assert np.array_equal(read(camvid, Image.fromarray(COLOURS[IDS]).convert(mode)), EXPECTED)


def test_unknown_colours_are_named(camvid: CamVid) -> None:
    pixels = COLOURS[IDS].copy()
    pixels[0, :8, 0] = np.arange(1, 9)
    with pytest.raises(ValueError, match=r"train_000\.png: label colours: .*got .*\) and \d more$"):
        read(camvid, Image.fromarray(pixels))
    # lossy formats smear colours
    path = camvid.items[0][1].with_suffix(".jpg")
    Image.fromarray(COLOURS[IDS]).save(path)
    camvid.items[0] = (camvid.items[0][0], path)
    with pytest.raises(ValueError, match=r"train_000\.jpg: label colours: expected those of the data set's palette"):
        camvid.load(0)


def test_ids_in_three_channels_are_no_colours(camvid: CamVid) -> None:
    with pytest.raises(ValueError, match=r"label colours: .* in three channels ids\?"):
        read(camvid, Image.fromarray(np.repeat(IDS[:, :, None], 3, axis=2)))


def test_colours_of_cityscapes(tmp_path: Path) -> None:
    data = Cityscapes(folders.cityscapes(tmp_path, "zips", "fine", ("val",)), "val")
    ids = np.resize(np.arange(19, dtype=np.uint8), SIZE)
    colours = np.array(CITYSCAPES_PALETTE, np.uint8)[ids]
    # ground, dynamic, unlabelled
    colours[0, :3] = (81, 0, 81), (111, 74, 0), (0, 0, 0)
    expected = ids.copy()
    expected[0, :3] = VOID
    assert np.array_equal(read(data, Image.fromarray(colours)), expected)
    table = np.zeros((34, 3), np.uint8)
    table[list(CITYSCAPES_TRAIN_TO_LABEL)] = CITYSCAPES_PALETTE
    label_ids = np.array(CITYSCAPES_TRAIN_TO_LABEL, np.uint8)[ids]
    assert np.array_equal(read(data, with_palette(label_ids, table)), ids)
    with pytest.raises(ValueError, match="label palette: expected road"):
        read(data, with_palette(label_ids, np.roll(table, 1, axis=0)))


class _Lawn(SegmentationDataset):
    name = "lawn"
    class_names = ("grass", "not grass")
    palette = ((0, 160, 0), (90, 90, 90))
    lut = np.array([0, 1, *[254] * 254], dtype=np.uint8)
    allowed_ids = "0 and 1"


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "own"])
def test_255_is_void_everywhere(tmp_path: Path, name: str) -> None:
    if name == "cityscapes":
        data: SegmentationDataset = Cityscapes(folders.cityscapes(tmp_path, "zips", "fine", ("val",)), "val")
    else:
        data = CamVid(folders.camvid(tmp_path, {"train": 1}), "train")
    if name == "own":
        data = _Lawn(data.items, split="train")
    ids = np.full(SIZE, 7 if name == "cityscapes" else 0, np.uint8)
    ids[:4] = 255
    label = read(data, Image.fromarray(ids))
    assert (label[:4] == VOID).all() and (label[4:] == 0).all()
    assert data.class_counts([0]).tolist()[:2] == [(SIZE[0] - 4) * SIZE[1], 0]


def test_255_may_be_a_class(tmp_path: Path) -> None:
    data = _Lawn(CamVid(folders.camvid(tmp_path, {"train": 1}), "train").items, split="train")
    data.lut = np.array([0, *[254] * 254, 1], dtype=np.uint8)
    mask = (IDS > 5).astype(np.uint8)
    assert np.array_equal(read(data, Image.fromarray(255 * mask)), mask)


@pytest.mark.parametrize("kind", ["16 bits", "4 bits", "1 bit"])
def test_ids_of_other_depths(camvid: CamVid, kind: str) -> None:
    path = camvid.items[0][1]
    if kind == "16 bits":
        assert np.array_equal(read(camvid, Image.fromarray(IDS.astype(np.uint16))), EXPECTED)
        with pytest.raises(ValueError, match="label ids: expected 0..10, 11 and 255 .void., got 300"):
            read(camvid, Image.fromarray(IDS + np.uint16(300) * (IDS == 0)))
    elif kind == "4 bits":
        write_grey_4(path, IDS)
        assert np.array_equal(camvid.load(0).label, EXPECTED)
    else:
        assert np.array_equal(read(camvid, Image.fromarray(IDS > 5)), (IDS > 5).astype(np.uint8))


def write_grey_4(path: Path, ids: np.ndarray) -> None:
    """A grey PNG of 4 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    rows = b"".join(b"\0" + (row[::2] << 4 | row[1::2]).tobytes() for row in ids)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 4, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


@pytest.mark.parametrize("labels_on", ["upright", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_pictures_that_lie(tmp_path: Path, orientation: int, labels_on: str) -> None:
    root = folders.camvid(tmp_path, {"train": 1})
    upright = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(turned(upright, orientation, back=True)).save(root / "train" / "train_000.png", exif=exif)
    ids = IDS if labels_on == "upright" else turned(IDS, orientation, back=True)
    folders.write_label(root / "trainannot" / "train_000.png", ids)
    sample = dataset("camvid", root, "train", labels_on=labels_on).load(0)
    assert np.array_equal(sample.image, upright) and np.array_equal(sample.label, EXPECTED)


def test_labels_on_the_stored_pixels_are_suggested(tmp_path: Path) -> None:
    root = folders.camvid(tmp_path, {"train": 1})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "train" / "train_000.png", exif=exif)
    with pytest.raises(ValueError, match=r'label size: expected 48x64 .* got 64x48 .*labels_on is "stored"'):
        CamVid(root, "train").load(0)
    with pytest.raises(ValueError, match="labels_on: expected upright or stored, got 'lying'"):
        dataset("camvid", root, "train", labels_on="lying")
    arguments = ["evaluate", "--weights", "camvid", "--dataset", "camvid", "--data", str(root), "--split", "train"]
    assert main([*arguments, "--quiet"]) == 2
    assert main([*arguments, "--quiet", "--labels-on", "stored", "--value-range", "4095"]) == 0
