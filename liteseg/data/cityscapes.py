"""Cityscapes, fine and coarse, from the unpacked zips or from the folders the LiteSeg authors used."""

from __future__ import annotations

from pathlib import Path

from .base import SegmentationDataset, Transforms, require_folder
from .tables import (
    CITYSCAPES_CATEGORIES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_LUT,
    CITYSCAPES_PALETTE,
    CITYSCAPES_VOID_COLOURS,
)

_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "fine": {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")},
    "coarse": {"train": ("train",), "val": ("val",), "train_extra": ("train_extra",)},
}
_IMAGE_ROOTS = ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit", "leftImg8bit_trainextra/leftImg8bit")
_LABEL_ROOTS = {
    "fine": ("gtFine", "gtFine_trainvaltest/gtFine"),
    "coarse": ("gtCoarse", "gtCoarse/gtCoarse"),
}
_IMAGE_END = "leftImg8bit.png"


class Cityscapes(SegmentationDataset):
    """Cityscapes with the 19 evaluated classes; `*_labelIds.png` files are converted to train ids while loading.

    mode: fine (splits train, val, test, trainval) or coarse (train, val, train_extra); None means coarse for
    train_extra and fine otherwise. The test split has no labels. Folder layouts understood under `root`:
    leftImg8bit/SPLIT/CITY with gtFine/SPLIT/CITY or gtCoarse/SPLIT/CITY (the unpacked zips), and
    leftImg8bit_trainvaltest/leftImg8bit with gtFine_trainvaltest/gtFine, or gtCoarse/gtCoarse.
    """

    name = "cityscapes"
    class_names = CITYSCAPES_CLASSES
    palette = CITYSCAPES_PALETTE
    categories = CITYSCAPES_CATEGORIES
    lut = CITYSCAPES_LUT
    void_colours = CITYSCAPES_VOID_COLOURS
    allowed_ids = "labelIds 0..33 (255 stands for -1)"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        mode: str | None = None,
        transform: Transforms | None = None,
        *,
        seed: int = 0,
    ) -> None:
        root = Path(root)
        if mode is None:
            mode = "coarse" if split == "train_extra" else "fine"
        if mode not in _SPLITS:
            raise ValueError(f"cityscapes: mode: expected one of {', '.join(_SPLITS)}, got {mode!r}")
        if split not in _SPLITS[mode]:
            raise ValueError(
                f"cityscapes: split: expected one of {', '.join(_SPLITS[mode])} for mode {mode}, got {split!r}"
            )
        require_folder(root, "a Cityscapes folder with leftImg8bit/ and gtFine/ or gtCoarse/")
        items: list[tuple[Path, Path | None]] = []
        for part in _SPLITS[mode][split]:
            items += _collect(root, part, mode)
        self.mode = mode
        super().__init__(items, split=split, transform=transform, seed=seed)


def _find(root: Path, bases: tuple[str, ...], part: str) -> Path:
    for base in bases:
        folder = root / base / part
        if folder.is_dir():
            return folder
    raise ValueError(f"{root}: no {part} folder; expected one of {', '.join(f'{base}/{part}' for base in bases)}")


def _collect(root: Path, part: str, mode: str) -> list[tuple[Path, Path | None]]:
    image_root = _find(root, _IMAGE_ROOTS, part)
    # what some systems write beside a file has its name after "._"
    images = sorted(path for path in image_root.glob(f"[!.]*/[!.]*{_IMAGE_END}") if path.is_file())
    if not images:
        raise ValueError(f"{image_root}: no images; expected CITY/CITY_SEQUENCE_FRAME_{_IMAGE_END}")
    if part == "test":
        return [(image, None) for image in images]
    label_root = _find(root, _LABEL_ROOTS[mode], part)
    label_end = "gtFine_labelIds.png" if mode == "fine" else "gtCoarse_labelIds.png"
    items: list[tuple[Path, Path | None]] = []
    for image in images:
        label = label_root / image.parent.name / (image.name.removesuffix(_IMAGE_END) + label_end)
        if not label.is_file():
            raise ValueError(f"{label}: label of {image.name} not found")
        items.append((image, label))
    return items
