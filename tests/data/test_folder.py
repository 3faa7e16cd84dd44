"""Data sets of one's own: description, layouts, label codes, the check, and the commands that take them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from liteseg.cli import main
from liteseg.data import VOID, Folder, check, dataset
from tests.data import folders

SIZE = folders.SIZE
IDS = np.resize(np.array([0, 0, 7, 200, 9], dtype=np.uint8), SIZE)
EXPECTED = np.array([0, 0, 1, 2, VOID], dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folders.own(tmp_path / "own")


def change(root: Path, **changes: object) -> None:
    """Other values in the description; None takes one out."""
    content = {**yaml.safe_load((root / "dataset.yaml").read_text()), **changes}
    (root / "dataset.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


def test_what_a_description_says(root: Path) -> None:
    for given in (root, root / "dataset.yaml"):
        data = Folder(given, "train")
        assert data.class_names == ("grass", "path", "flower bed") and len(data) == 4
        assert data.palette == ((0, 160, 0), (160, 160, 160), (255, 0, 255))
    sample = data.load(2)
    assert sample.path == root / "pictures/train/train_002.jpg" and sample.image.shape == (*SIZE, 3)
    assert np.array_equal(sample.label, np.resize(EXPECTED, SIZE))
    assert Folder.splits(root) == ("train", "val", "new")
    assert Folder(root, "new").load(0).label is None
    assert len(Folder(root, "trainval")) == 6
    again = pickle.loads(pickle.dumps(dataset("folder", root, "val")))
    assert again.num_classes == 3 and np.array_equal(again.load(0).label, np.resize(EXPECTED, SIZE))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}", "labels/{}"),
        ("{}/images", "{}/labels"),
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("{}", "{}annot"),
        ("x/{}", "x/{}.txt"),
    ],
    ids=lambda value: value.replace("/", " "),
)
def test_layouts_without_a_description(tmp_path: Path, images: str, labels: str) -> None:
    lists = labels.endswith(".txt")
    for split in ("train", "val"):
        # sub-folders count as a part of the name
        for name in ("a/x", "b/x"):
            image = tmp_path / images.format(split) / f"{name}.png"
            label = tmp_path / (f"y/{split}" if lists else labels.format(split)) / f"{name}.png"
            folders.write_pair(image, label, (0, 1))
        if lists:
            names = [f"x/{split}/{name}.png y/{split}/{name}.png\n" for name in ("a/x", "b/x")]
            (tmp_path / f"{split}.txt").write_text("".join(names))
    assert Folder.splits(tmp_path, ["no", "yes"]) == ("train", "val")
    data = dataset("folder", tmp_path, "val", classes=["no", "yes"])
    assert len(data) == 2 and data.class_names == ("no", "yes")
    assert set(np.unique(data.load(1).label)) == {0, 1}


def test_binary_masks(root: Path) -> None:
    change(root, classes=[{"name": "good", "id": 0}, {"name": "defect", "id": 255}], ignore=None)
    folders.write_label(root / "masks/train/train_000_mask.png", np.where(IDS == 7, 255, 0).astype(np.uint8))
    data = Folder(root, "train")
    assert np.array_equal(data.load(0).label, (IDS == 7).astype(np.uint8))
    with pytest.raises(ValueError, match=r"train_001_mask\.png: label ids: expected 0, 255, got 7, 9, 200"):
        data.load(1)


def test_masks_of_colours(root: Path) -> None:
    data = Folder(root, "train")
    colours = np.array([*data.palette, (0, 0, 0)], np.uint8)
    Image.fromarray(colours[np.minimum(np.resize(EXPECTED, SIZE), 3)]).save(data.items[0][1])
    assert np.array_equal(data.load(0).label, np.resize(EXPECTED, SIZE))
    # ids say nothing about a palette that the description does not know
    change(root, classes=[{"name": "grass", "id": 0}, {"name": "path", "id": 7}, {"name": "bed", "id": 200}])
    bare = Folder(root, "train")
    with pytest.raises(ValueError, match="the data set says no colours"):
        bare.load(0)
    painted = Image.fromarray(IDS)
    painted.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    painted.save(data.items[1][1])
    assert np.array_equal(bare.load(1).label, np.resize(EXPECTED, SIZE))
    change(root, classes=yaml.safe_load(folders.OWN)["classes"])
    with pytest.raises(ValueError, match="label palette: expected grass"):
        Folder(root, "train").load(1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"classes": None}, "classes: expected a list of names, or of mappings"),
        ({"classes": []}, "classes: expected 1 to 253 classes, got 0"),
        ({"classes": ["a", "a"]}, "classes: expected different names, got 'a, a'"),
        ({"classes": [{"id": 3}]}, "classes: expected a name for each class"),
        ({"classes": [{"name": "a", "colour": [0, 0, 0]}]}, "expected a mapping of name, id, color, got 'colour'"),
        ({"classes": [{"name": "a", "id": 256}]}, "id: expected ids from 0 to 255, got 256"),
        ({"classes": [{"name": "a", "id": "7"}]}, "id: expected ids from 0 to 255, got '7'"),
        ({"classes": [{"name": "a", "id": 9}]}, r"expected every id once, in ignore or at one class, got \[9\]"),
        ({"classes": [{"name": "a", "color": "green"}]}, r'color: expected \[R, G, B\] or "#RRGGBB", got \'green\''),
        ({"classes": [{"name": "a", "color": [0, 0, 1]}, "b"]}, "a color for each class or for none, got '1 of 2'"),
        (
            {"classes": [{"name": n, "color": [0, 0, 1]} for n in "ab"]},
            "classes: expected a color of its own for each class",
        ),
        ({"ignore": [-1]}, "ignore: expected ids from 0 to 255"),
        ({"split": {}}, "expected a mapping of classes, ignore, splits, label_ending, got 'split'"),
        ({"splits": ["train"]}, "splits: expected a mapping of names"),
        ({"splits": {"train": {"labels": "x"}}}, "splits.train: expected a list, or images with or without labels"),
        ({"splits": {"train": {"images": "nowhere"}}}, "nowhere: folder not found"),
        (
            {"splits": {"val": {"images": "pictures/val"}}},
            r"split: expected one of val \(.*\), got 'train'",
        ),
        (
            {"label_ending": ".png"},
            "expected a label NAME.png for every image, got none for train_000.jpg.* and 1 more",
        ),
    ],
)
def test_wrong_descriptions(root: Path, changes: dict[str, object], expected: str) -> None:
    change(root, **changes)
    with pytest.raises(ValueError, match=expected) as info:
        Folder(root, "train")
    assert "\n" not in str(info.value)


def test_no_description(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match=r"no description of a data set; expected a folder with dataset\.yaml"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match=r"no train split; expected train\.txt, images/train with labels/train"):
        Folder(tmp_path, classes=["a"])
    with pytest.raises(ValueError, match=r"dataset\.yaml: classes: expected none besides the file's own, got a"):
        Folder(root, classes=["a"])
    (root / "dataset.yaml").write_text("classes: [a")
    with pytest.raises(ValueError, match=r"dataset\.yaml: not a YAML file"):
        Folder(root)


def test_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "check", str(root), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 images, 4 label files; 48x64 (4)" in out and "new: 2 images, 0 label files" in out
    rows = {line.split()[0]: line.split() for line in out.split("val:")[0].splitlines()[2:]}
    for name, place in (("grass", 0), ("path", 1)):
        share = 100 * float((np.resize(EXPECTED, SIZE) == place).mean())
        assert rows[name][1:4] == [f"{share:.2f}", "%", "4"]
    assert rows["flower"][-2:] == ["200,", "201"] and rows["void"][1] == f"{100 * (IDS == 9).mean():.2f}"

    report = check(Folder(root, "train"))
    assert report.pixels.tolist() == [4 * int((IDS == i).sum()) for i in (0, 7, 200, 9)]
    assert report.occurs.tolist() == [4] * 4 and report.problems == []

    (root / "pictures/train/lonely.png").write_bytes((root / "pictures/val/val_000.jpg").read_bytes())
    folders.write_label(root / "masks/train/stray_mask.png", IDS)
    folders.write_label(root / "masks/train/train_000_mask.png", IDS + 1)
    folders.write_label(root / "masks/train/train_001_mask.png", IDS[:9])
    (root / "masks/train/train_002_mask.png").write_bytes(b"nothing")
    (root / "masks/train/._train_003_mask.png").write_bytes(b"not a label")
    assert main(["dataset", "check", str(root), "--split", "train", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "5 problems:" in out
    for line in (
        "lonely.png: image without a label",
        "stray_mask.png: label without an image",
        "train_000_mask.png: label ids: expected 0, 7, 200, 201 and 9, 255 (void), got 1, 8, 10",
        "train_001_mask.png: label size: expected 64x48 like train_001.jpg, got 64x9",
        "train_002_mask.png: not a picture",
    ):
        assert line in out
    assert main(["dataset", "check", str(root / "nowhere"), "--quiet"]) == 2


def test_check_of_other_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camvid = folders.camvid(tmp_path / "camvid")
    assert main(["dataset", "check", str(camvid), "--dataset", "camvid", "--quiet"]) == 0
    assert "never seen" not in capsys.readouterr().out
    folders.write_label(camvid / "valannot/val_001.png", np.zeros(SIZE, np.uint8))
    folders.write_label(camvid / "valannot/val_000.png", np.zeros(SIZE, np.uint8))
    assert main(["dataset", "check", str(camvid), "--dataset", "camvid", "--split", "val", "--quiet"]) == 0
    assert "never seen: building, pole, road" in capsys.readouterr().out


def test_a_class_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_for_a_test.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from liteseg.data import SegmentationDataset\n"
        "class Lawn(SegmentationDataset):\n"
        "    name = 'lawn'\n"
        "    class_names = ('grass', 'path', 'bed')\n"
        "    palette = ((0, 160, 0), (90, 90, 90), (255, 0, 255))\n"
        "    lut = np.array([0, 255, 255, 255, 255, 255, 255, 1, 255, 255, *[2] * 246], dtype=np.uint8)\n"
        "    allowed_ids = 'any'\n"
        "    def __init__(self, root, split, transform=None, *, seed=0):\n"
        "        images = sorted(Path(root, 'pictures', split).glob('*.jpg'))\n"
        "        items = [(p, Path(root, 'masks', split, f'{p.stem}_mask.png')) for p in images]\n"
        "        super().__init__(items, split=split, transform=transform, seed=seed)\n"
    )
    root = folders.own(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    try:
        for name in ("mine_for_a_test.Lawn", "mine_for_a_test:Lawn"):
            data = dataset(name, root, "train", labels_on="stored")
            assert len(data) == 4 and data.labels_on == "stored" and type(data).__name__ == "Lawn"
        assert sys.path == before
        arguments = ["dataset", "check", str(root), "--quiet", "--dataset"]
        assert main([*arguments, "mine_for_a_test.Lawn"]) == 0
        assert "train: 4 images" in capsys.readouterr().out
        for wrong, expected in (
            ("mine_for_a_test.Path", "expected a SegmentationDataset, got mine_for_a_test.Path"),
            ("mine_for_a_test.Loan", "--dataset: expected a name in mine_for_a_test, got Loan"),
            ("no_such_module.Lawn", "expected a module that can be imported, got no_such_module"),
            (
                "kitti",
                "expected one of camvid, cityscapes, folder, or the path of a class such as mine.Lawn, got 'kitti'",
            ),
        ):
            assert main([*arguments, wrong]) == 2
            assert expected in capsys.readouterr().err
    finally:
        sys.modules.pop("mine_for_a_test", None)
