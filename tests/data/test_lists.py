"""List files as editors and other systems leave them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from liteseg.data import CamVid
from tests.data import folders

NAMES = ("straße", "forêt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures with names beyond ASCII."""
    root = folders.camvid(tmp_path, {"train": 2})
    for number, name in enumerate(NAMES):
        for folder in ("train", "trainannot"):
            (root / folder / f"train_{number:03d}.png").rename(root / folder / f"{name}.png")
    return root


LINES = [f"train/{name}.png trainannot/{name}.png" for name in NAMES]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ";\n"], ids=["unix", "windows", "old mac", "semicolons"])
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("latin-1"),
        lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 with a mark", "latin-1", "utf-16-le", "utf-16-be"],
)
@pytest.mark.parametrize("slash", ["/", "\\"], ids=["slashes", "backslashes"])
@pytest.mark.parametrize("column", [" ", "\t"], ids=["space", "tab"])
def test_lists_of_other_systems(root: Path, end: str, encode: object, slash: str, column: str) -> None:
    text = "".join(line.replace("/", slash).replace(" ", column) + end for line in LINES)
    (root / "train.txt").write_bytes(encode(text))
    found = CamVid(root, "train").items
    assert [image.stem for image, _ in found] == [label.stem for _, label in found] == list(NAMES)
    assert all(image.is_file() and label.is_file() for image, label in found)


def test_names_with_spaces_after_tabs(root: Path) -> None:
    for folder in ("train", "trainannot"):
        (root / folder / f"{NAMES[0]}.png").rename(root / folder / "rainy day.png")
    (root / "train.txt").write_text("train/rainy day.png\ttrainannot/rainy day.png\n")
    assert CamVid(root, "train").items[0][0].name == "rainy day.png"


def test_absolute_names_of_another_system(root: Path) -> None:
    (root / "train.txt").write_text(rf"D:\CamVid\train\{NAMES[0]}.png D:\CamVid\trainannot\{NAMES[0]}.png")
    assert CamVid(root, "train").items[0][1] == root / "trainannot" / f"{NAMES[0]}.png"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train/none.png trainannot/none.png", r"train\.txt:3: image not found: .*train/none\.png"),
        (f"train/{NAMES[0]}.png trainannot/none.png", r"train\.txt:3: label not found: .*trainannot/none\.png"),
        ("train/a.png", r"train\.txt:3: expected `image label`, got 'train/a\.png'"),
        ("a b c", r"train\.txt:3: expected `image label`, got 'a b c'"),
    ],
)
def test_errors_name_list_and_line(root: Path, line: str, expected: str) -> None:
    (root / "train.txt").write_text("\n".join([LINES[0], "", line]), encoding="utf-8")
    with pytest.raises(ValueError, match=expected):
        CamVid(root, "train")


def test_hidden_files_named_in_a_list_are_taken(root: Path) -> None:
    # a list says what it means; only folders are searched with care
    for folder in ("train", "trainannot"):
        (root / folder / f"{NAMES[0]}.png").rename(root / folder / ".first.png")
    (root / "train.txt").write_text("train/.first.png trainannot/.first.png")
    assert len(CamVid(root, "train")) == 1
