"""What every data set here has in common: decoding, label conversion, reproducible augmentation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from liteseg.reading import SampleRange, read_image, stored_orientation, turned

from .labels import LabelCode
from .tables import VOID


@dataclass(frozen=True)
class Sample:
    """One decoded image and its labels.

    image: uint8 [H, W, 3], RGB, upright. label: uint8 [H, W] of train ids with 255 for void, or None where the split
    has none.
    """

    image: np.ndarray
    label: np.ndarray | None
    path: Path
    label_path: Path | None


Transform = Callable[[Sample, np.random.Generator], Any]
Transforms = Transform | Sequence[Transform]


def _found(read: Callable[..., np.ndarray], path: Path, *options: Any) -> np.ndarray:
    """What `read` gives; a file that is missing is bad input like any other."""
    try:
        return read(path, *options)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None


def require_folder(path: Path, expected: str) -> Path:
    """`path` if it is a folder, else ValueError that says what should be there."""
    if not path.is_dir():
        raise ValueError(f"{path}: folder not found; expected {expected}")
    return path


class SegmentationDataset(Dataset[Any]):
    """Images with per-pixel class labels.

    Indexing by an int `i` is turn 0; indexing by `(turn, i)` draws the augmentation from a generator seeded with
    (seed, turn, i), so a result depends neither on workers nor on what was loaded before. Without a transform an item
    is the plain `Sample`; of several transforms, turn t uses number t modulo their count.

    Attributes:
        on_error: what indexing does about an unreadable file: "fail" raises ValueError; "replace" warns and takes the
            next readable item; "drop" warns and gives None. A folder that is gone always raises.
        value_range: of images with more than 8 bits a sample, see :func:`liteseg.reading.rgb_array`.
        labels_on: pictures are turned upright by their EXIF orientation. "upright": labels are drawn on the picture as
            viewers show it; "stored": on the pixels as they lie in its file, so they are turned with it.
        class_names, palette: one a train id.
        lut: uint8 [256]: id in a label file -> train id, 255 for void, 254 for ids that must not occur.
        allowed_ids: the ids of `lut` in words, for messages.
        label_palette: colours of the classes in label files, the palette unless a class has another; None where they
            are not known: palettes of label files are not looked at then, and files of colours not taken.
        void_colours: colours of void in label files of colours.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    categories: dict[str, tuple[int, ...]] | None = None
    ignore_index: int = VOID
    lut: np.ndarray
    allowed_ids: str
    void_colours: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)
    value_range: SampleRange = None
    labels_on: Literal["upright", "stored"] = "upright"
    on_error: Literal["fail", "replace", "drop"] = "fail"

    def __init__(
        self,
        items: Sequence[tuple[Path, Path | None]],
        *,
        split: str,
        transform: Transforms | None = None,
        seed: int = 0,
    ) -> None:
        self.items = list(items)
        self.split = split
        self.transforms = () if transform is None else (transform,) if callable(transform) else tuple(transform)
        self.seed = seed

    @property
    def label_palette(self) -> tuple[tuple[int, int, int], ...] | None:
        return self.palette

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> Sample:
        """Decode item `index`; ValueError naming the file if image or label is unreadable or they do not fit."""
        path, label_path = self.items[index]
        image = _found(read_image, path, self.value_range)
        if label_path is None:
            return Sample(image, None, path, None)
        label = self.load_label(index)
        if label.shape != image.shape[:2]:
            lies = self.labels_on == "upright" and stored_orientation(path) != 1
            hint = '; drawn on the picture as stored? then labels_on is "stored"' if lies else ""
            raise ValueError(
                f"{label_path}: label size: expected {image.shape[1]}x{image.shape[0]} like {path.name}, "
                f"got {label.shape[1]}x{label.shape[0]} (width x height){hint}"
            )
        return Sample(image, label, path, label_path)

    def load_label(self, index: int) -> np.ndarray:
        """Only the labels of item `index`: uint8 [H, W]; ValueError where the split has none."""
        path, label_path = self.items[index]
        if label_path is None:
            raise ValueError(f"{path}: no label: the {self.split} split of {self.name} comes without labels")
        code = LabelCode(self.lut, self.allowed_ids, self.class_names, self.label_palette, self.void_colours)
        label = _found(code.read, label_path)
        return turned(label, stored_orientation(path)) if self.labels_on == "stored" else label

    def __getitem__(self, index: int | tuple[int, int]) -> Any:
        turn, item = index if isinstance(index, tuple) else (0, index)
        sample = self._load(item)
        if sample is None or not self.transforms:
            return sample
        return self.transforms[turn % len(self.transforms)](sample, np.random.default_rng((self.seed, turn, item)))

    def _load(self, index: int) -> Sample | None:
        for candidate in (*range(index, len(self)), *range(index)):
            try:
                return self.load(candidate)
            except ValueError as error:
                self._tolerate(candidate, error)
                if self.on_error == "drop":
                    return None
        raise ValueError(
            f"{self.items[index][0]}: none of the {len(self)} images of the {self.split} split is readable"
        )

    def _tolerate(self, index: int, error: ValueError) -> None:
        """Warns of an unreadable item, or raises where that is wanted or its folder is gone."""
        if self.on_error == "fail":
            raise error
        for path in self.items[index]:
            if path is not None:
                require_folder(path.parent, f"the files of the {self.split} split; it was there at the start")
        warnings.warn(f"skipped: {error}", stacklevel=2)

    def class_counts(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Labelled pixels of each class, int64 [num_classes], in all or some items; reads their labels once."""
        counts = np.zeros(256, dtype=np.int64)
        for index in range(len(self)) if indices is None else indices:
            try:
                counts += np.bincount(self.load_label(index).ravel(), minlength=256)
            except ValueError as error:
                self._tolerate(index, error)
        return counts[: self.num_classes]

    def class_shares(self) -> np.ndarray:
        """Share of each class among all labelled pixels, float64 [num_classes]."""
        counts = self.class_counts()
        return counts / max(int(counts.sum()), 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, {len(self)} images, {self.num_classes} classes)"
