"""CamVid with the usual 11 classes (480x360 copy or the full-size one)."""

from __future__ import annotations

from pathlib import Path

from liteseg.reading import IMAGE_SUFFIXES, files_in

from .base import SegmentationDataset, Transforms, require_folder
from .lists import read_pairs
from .tables import CAMVID_CLASSES, CAMVID_LUT, CAMVID_PALETTE

_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}


class CamVid(SegmentationDataset):
    """CamVid, labels 0..10 and void 11 or 255 (given back as 255).

    `root` holds train.txt, val.txt and test.txt with `image label` per line, or only the folders train/ and
    trainannot/ (val, test alike; a label has its image's stem and .png). split: train, val, test or trainval.
    """

    name = "camvid"
    class_names = CAMVID_CLASSES
    palette = CAMVID_PALETTE
    lut = CAMVID_LUT
    allowed_ids = "0..10, 11 and 255 (void)"

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
            items += read_pairs(list_file, root) if list_file.is_file() else _from_folders(root, part)
        super().__init__(items, split=split, transform=transform, seed=seed)


def _from_folders(root: Path, part: str) -> list[tuple[Path, Path | None]]:
    expected = f"images in {part}/ and labels in {part}annot/, or a list {part}.txt"
    images = require_folder(root / part, expected)
    labels = require_folder(root / f"{part}annot", expected)
    items: list[tuple[Path, Path | None]] = []
    for image in files_in(images):
        label = labels / f"{image.stem}.png"
        if not label.is_file():
            raise ValueError(f"{label}: label of {image.name} not found")
        items.append((image, label))
    if not items:
        raise ValueError(f"{images}: no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return items
