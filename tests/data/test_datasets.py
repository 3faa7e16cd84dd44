"""Data sets: folder layouts, label conversion and readable errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liteseg.data import (
    CITYSCAPES_CATEGORIES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_TO_LABEL,
    CamVid,
    Cityscapes,
    dataset,
)
from tests.data import folders

# labelId -> train id of the evaluated classes, everything else is void
EVALUATED = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
EVALUATED |= {28: 15, 31: 16, 32: 17, 33: 18}


def _names(data: CamVid | Cityscapes) -> list[str]:
    return [path.name for path, _ in data.items]


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "folders only"])
def test_camvid_layouts(tmp_path: Path, lists: bool) -> None:
    root = folders.camvid(tmp_path, lists=lists)
    assert [len(CamVid(root, split)) for split in ("train", "val", "test", "trainval")] == [4, 2, 1, 6]
    both = _names(CamVid(root, "trainval"))
    assert both == _names(CamVid(root, "train")) + _names(CamVid(root, "val"))

    sample = CamVid(root, "train").load(1)
    assert sample.path == root / "train" / "train_001.png" and sample.label_path == root / "trainannot/train_001.png"
    assert sample.image.dtype == np.uint8 and sample.image.shape == (*folders.SIZE, 3)
    ids = np.asarray(Image.open(sample.label_path))
    assert np.array_equal(sample.label, np.where(ids == 11, 255, ids))


def test_camvid_list_order_and_foreign_absolute_paths(tmp_path: Path) -> None:
    root = folders.camvid(tmp_path)
    (root / "train.txt").write_text(
        "/Other/CamVid/train/train_003.png /Other/CamVid/trainannot/train_003.png;\n"
        "\ntrain/train_000.png trainannot/train_000.png\n"
    )
    assert _names(CamVid(root, "train")) == ["train_003.png", "train_000.png"]
    assert CamVid(root, "train").load(0).label_path == root / "trainannot" / "train_003.png"


def test_class_shares_leave_void_out(tmp_path: Path) -> None:
    root = folders.camvid(tmp_path, {"train": 1})
    ids = np.full(folders.SIZE, 11, dtype=np.uint8)
    ids[:2], ids[2] = 3, 10
    folders.write_label(root / "trainannot" / "train_000.png", ids)
    expected = np.zeros(11)
    expected[3], expected[10] = 2 / 3, 1 / 3
    assert np.allclose(CamVid(root, "train").class_shares(), expected)


@pytest.mark.parametrize("layout", ["zips", "authors"])
@pytest.mark.parametrize("mode", ["fine", "coarse"])
def test_cityscapes_layouts(tmp_path: Path, layout: str, mode: str) -> None:
    root = folders.cityscapes(tmp_path, layout, mode, ("train", "val"))
    data = Cityscapes(root, "train", mode=mode)
    kind = {"fine": "gtFine", "coarse": "gtCoarse"}[mode]
    assert len(data) == 4 and data.items[0][1].name == f"aachen_000000_000019_{kind}_labelIds.png"
    sample = data.load(0)
    ids = np.asarray(Image.open(sample.label_path))
    assert set(np.unique(ids)) == set(range(34))
    assert np.array_equal(sample.label, np.vectorize(lambda i: EVALUATED.get(int(i), 255))(ids))


def test_cityscapes_splits(tmp_path: Path) -> None:
    root = folders.cityscapes(tmp_path, "zips", "fine", ("train", "val", "test"))
    folders.cityscapes(tmp_path, "zips", "coarse", ("train_extra",), per_city=3)
    assert len(Cityscapes(root, "trainval")) == 8
    assert len(Cityscapes(root, "train_extra")) == 6 and Cityscapes(root, "train_extra").mode == "coarse"
    test = Cityscapes(root, "test")
    assert len(test) == 4 and test.load(0).label is None and test.load(0).label_path is None
    with pytest.raises(ValueError, match="test split of cityscapes comes without labels"):
        test.load_label(0)


def test_cityscapes_licence_plate_is_void(tmp_path: Path) -> None:
    root = folders.cityscapes(tmp_path, "zips", "fine", ("train",))
    data = Cityscapes(root, "train")
    ids = np.full(folders.SIZE, 26, dtype=np.uint8)
    ids[0] = 255
    folders.write_label(data.items[0][1], ids)
    label = data.load(0).label
    assert (label[0] == 255).all() and (label[1:] == 13).all()


def test_cityscapes_tables() -> None:
    assert {label: train for train, label in enumerate(CITYSCAPES_TRAIN_TO_LABEL)} == EVALUATED
    assert sorted(i for ids in CITYSCAPES_CATEGORIES.values() for i in ids) == list(range(19))
    assert len(CITYSCAPES_CATEGORIES) == 7
    assert CITYSCAPES_PALETTE[CITYSCAPES_CLASSES.index("sky")] == (70, 130, 180)
    assert len(set(CITYSCAPES_PALETTE)) == 19


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (
            np.full(folders.SIZE, 12, np.uint8),
            r"train_000\.png: label ids: expected 0\.\.10, 11 and 255 .*got 12",
        ),
        (np.resize(np.array([0, 200, 77], np.uint8), folders.SIZE), r"got 77, 200"),
        (
            np.full((*folders.SIZE, 3), 9, np.uint8),
            r"train_000\.png: label colours: .*got \(9, 9, 9\), in three",
        ),
        (np.zeros((8, 8), np.uint8), r"train_000\.png: label size: expected 64x48 .* got 8x8"),
    ],
    ids=["void + 1", "two ids", "colours", "size"],
)
def test_bad_label_is_named(tmp_path: Path, label: np.ndarray, expected: str) -> None:
    root = folders.camvid(tmp_path)
    folders.write_label(root / "trainannot" / "train_000.png", label)
    with pytest.raises(ValueError, match=expected):
        CamVid(root, "train").load(0)


def test_cityscapes_bad_ids_are_named(tmp_path: Path) -> None:
    data = Cityscapes(folders.cityscapes(tmp_path, "zips", "fine", ("val",)), "val")
    folders.write_label(data.items[2][1], np.full(folders.SIZE, 34, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"ulm_000000_000019_gtFine_labelIds\.png: label ids: .*0\.\.33.* got 34"):
        data.load(2)


@pytest.mark.parametrize("content", [b"", b"not a picture", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_corrupt_file_is_named(tmp_path: Path, folder: str, content: bytes | None) -> None:
    root = folders.camvid(tmp_path)
    path = root / folder / "train_000.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=rf"{folder}/train_000\.png: (not a|damaged) picture"):
        CamVid(root, "train").load(0)


def test_file_that_vanished_is_named(tmp_path: Path) -> None:
    data = CamVid(folders.camvid(tmp_path), "train")
    data.items[1][0].unlink()
    with pytest.raises(ValueError, match=r"train_001\.png: no such file"):
        data.load(1)


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "folders only"])
def test_missing_label_is_named(tmp_path: Path, lists: bool) -> None:
    root = folders.camvid(tmp_path, lists=lists)
    (root / "valannot" / "val_001.png").unlink()
    expected = r"val\.txt:2: label not found: .*valannot/val_001\.png" if lists else r"valannot/val_001\.png: label of"
    with pytest.raises(ValueError, match=expected):
        CamVid(root, "val")


def test_cityscapes_missing_label_is_named(tmp_path: Path) -> None:
    root = folders.cityscapes(tmp_path, "authors", "fine", ("train",))
    next(root.glob("gtFine*/gtFine/train/ulm/*000001*")).unlink()
    with pytest.raises(ValueError, match=r"ulm_000001_000019_gtFine_labelIds\.png: label of .* not found"):
        Cityscapes(root, "train")


def test_missing_and_empty_folders_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: folder not found; expected a CamVid folder"):
        CamVid(tmp_path / "nothing", "train")
    with pytest.raises(
        ValueError, match=r"train: folder not found; expected images in train/ and labels in trainannot/"
    ):
        CamVid(tmp_path, "train")
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(ValueError, match=r"train: no images; expected files ending in \.bmp"):
        CamVid(tmp_path, "train")
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt: empty"):
        CamVid(tmp_path, "val")
    (tmp_path / "test.txt").write_text("only_one_column\n")
    with pytest.raises(ValueError, match=r"test\.txt:1: expected `image label`"):
        CamVid(tmp_path, "test")
    with pytest.raises(ValueError, match=r"no train folder; expected one of leftImg8bit/train"):
        Cityscapes(tmp_path, "train")
    (tmp_path / "leftImg8bit" / "train" / "ulm").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"leftImg8bit/train: no images; expected CITY/"):
        Cityscapes(tmp_path, "train")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("kitti", "train"),
            "dataset: name: expected one of camvid, cityscapes, folder, .* got 'kitti'",
        ),
        (("camvid", "extra"), "camvid: split: expected one of train, val, test, trainval, got 'extra'"),
        (("cityscapes", "extra"), "cityscapes: split: expected one of train, val, test, trainval for mode fine"),
    ],
)
def test_unknown_names(tmp_path: Path, arguments: tuple[str, str], expected: str) -> None:
    name, split = arguments
    with pytest.raises(ValueError, match=expected):
        dataset(name, tmp_path, split)


def test_unknown_cityscapes_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode: expected one of fine, coarse, got 'rough'"):
        dataset("cityscapes", tmp_path, "train", mode="rough")
    with pytest.raises(ValueError, match="expected one of train, val, train_extra for mode coarse, got 'test'"):
        dataset("cityscapes", tmp_path, "test", mode="coarse")


def test_pickles_and_prints(tmp_path: Path) -> None:
    data = dataset("camvid", folders.camvid(tmp_path), "train")
    assert repr(data) == "CamVid(split='train', 4 images, 11 classes)"
    assert np.array_equal(pickle.loads(pickle.dumps(data)).load(0).image, data[0].image)


def test_real_camvid(shared: Path) -> None:
    root = shared / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("no CamVid in the shared folder")
    assert [len(CamVid(root, split)) for split in ("train", "val", "test", "trainval")] == [367, 101, 233, 468]
    sample = CamVid(root, "test").load(0)
    assert sample.image.shape == (360, 480, 3) and set(np.unique(sample.label)) <= {*range(11), 255}
    # the classes' shares as counted when the copy was made
    listed = [0.1754, 0.2421, 0.0102, 0.3296, 0.0467, 0.1012, 0.0122, 0.0117, 0.0611, 0.0067, 0.0030]
    assert np.allclose(CamVid(root, "train").class_shares(), listed, atol=6e-5)
