"""CamVid with the usual 11 classes (480x360 copy or the full-size one)."""

from __future__ import annotations

from pathlib import Path

from .base import IMAGE_SUFFIXES, SegmentationDataset, Transforms, require_folder
from .tables import CAMVID_CLASSES, CAMVID_LUT, CAMVID_PALETTE

_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}


class CamVid(SegmentationDataset):
    """CamVid, labels 0..10 and void 11 (given back as 255).

    `root` holds train.txt, val.txt and test.txt with `image label` per line, or only the folders train/ and
    trainannot/ (val, test alike; a label has its image's stem and .png). split: train, val, test or trainval.
    """

    name = "camvid"
    class_names = CAMVID_CLASSES
    palette = CAMVID_PALETTE
    lut = CAMVID_LUT
    allowed_ids = "0..10 and 11 (void)"

    def __init__(
        self, root: str | Path, split: str = "train", transform: Transforms | None = None, *, seed: int = 0
    ) -> None:
        root = Path(root)
        if split not in _SPLITS:
            raise ValueError(f"camvid: split: expected one of {', '.join(_SPLITS)}, got {split!r}")
        require_folder(root, "a CamVid folder with train.txt or train/ and trainannot/ (val, test alike)")
        items: list[tuple[Path, Path | None]] = []
        for part in _SPLITS[split]:
            list_file = root / f"{part}.txt"
            items += _from_list(root, list_file) if list_file.is_file() else _from_folders(root, part)
        super().__init__(items, split=split, transform=transform, seed=seed)


def _from_list(root: Path, list_file: Path) -> list[tuple[Path, Path | None]]:
    items: list[tuple[Path, Path | None]] = []
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        # some copies end each line with a semicolon
        columns = line.strip().rstrip(";").split()
        if not columns:
            continue
        if len(columns) != 2:
            raise ValueError(f"{list_file}:{number}: expected `image label`, got {line.strip()!r}")
        image, label = (_resolve(root, column) for column in columns)
        if not image.is_file():
            raise ValueError(f"{image}: image not found, though {list_file.name} line {number} lists it")
        if not label.is_file():
            raise ValueError(f"{label}: label not found, though {list_file.name} line {number} lists it")
        items.append((image, label))
    if not items:
        raise ValueError(f"{list_file}: empty; expected `image label` per line")
    return items


def _resolve(root: Path, entry: str) -> Path:
    path = root / entry
    # lists made on another machine name absolute paths; the last two parts (train/name.png) are what counts
    return path if path.is_file() else root / Path(*Path(entry).parts[-2:])


def _from_folders(root: Path, part: str) -> list[tuple[Path, Path | None]]:
    expected = f"images in {part}/ and labels in {part}annot/, or a list {part}.txt"
    images = require_folder(root / part, expected)
    labels = require_folder(root / f"{part}annot", expected)
    items: list[tuple[Path, Path | None]] = []
    for image in sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
        label = labels / f"{image.stem}.png"
        if not label.is_file():
            raise ValueError(f"{label}: label of {image.name} not found")
        items.append((image, label))
    if not items:
        raise ValueError(f"{images}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return items
