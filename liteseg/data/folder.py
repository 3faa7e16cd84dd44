"""A data set of one's own: folders or lists of pictures and label files, and a file that says what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from liteseg.errors import UserError
from liteseg.reading import files_in

from .base import SegmentationDataset, Transforms, require_folder
from .labels import Colour
from .lists import read_pairs
from .tables import INVALID, VOID, default_palette

DESCRIPTION = "dataset.yaml"
_KEYS = ("classes", "ignore", "splits", "label_ending")
_CLASS_KEYS = ("name", "id", "color")
_SPLIT_KEYS = ("images", "labels", "list")
# folders of a split's images and labels, where the description names none
_LAYOUTS = (
    ("images/{}", "labels/{}"),
    ("{}/images", "{}/labels"),
    ("images/{}", "masks/{}"),
    ("{}/images", "{}/masks"),
    ("{}", "{}annot"),
)
_SPLITS = ("train", "val", "test")
# so many file names are in an error
_NAMED = 3


@dataclass(frozen=True)
class Description:
    """What a data set's files mean.

    Attributes:
        origin: where this stands, for messages.
        class_names: one a train id.
        ids: ids of each class in label files of one channel.
        palette: colour of each class; None where none has one.
        ignore: ids that are void.
        splits: folders or lists of each split, relative to the data set's folder; empty for the usual ones.
        label_ending: what a label's name has after its image's stem.
    """

    origin: str
    class_names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    palette: tuple[Colour, ...] | None = None
    ignore: tuple[int, ...] = ()
    splits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    label_ending: str = ".png"

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) < INVALID:
            raise _wrong(self.origin, "classes", f"1 to {INVALID - 1} classes", len(self.class_names))
        if len(set(self.class_names)) < len(self.class_names):
            raise _wrong(self.origin, "classes", "different names", ", ".join(self.class_names))
        used = [i for ids in (*self.ids, self.ignore) for i in ids]
        twice = sorted({i for i in used if used.count(i) > 1})
        if twice:
            raise _wrong(self.origin, "classes", "every id once, in ignore or at one class", twice)
        if self.palette is not None and len(set(self.palette)) < len(self.palette):
            raise _wrong(self.origin, "classes", "a color of its own for each class", list(self.palette))

    def lut(self) -> np.ndarray:
        """uint8 [256]: id in a label file -> train id, VOID or INVALID."""
        table = np.full(256, INVALID, dtype=np.uint8)
        table[VOID] = VOID
        table[list(self.ignore)] = VOID
        for train, ids in enumerate(self.ids):
            table[list(ids)] = train
        return table

    def allowed(self) -> str:
        """The ids in words."""
        void = sorted({*self.ignore, *({VOID} - {i for ids in self.ids for i in ids})})
        known = ", ".join(str(i) for ids in self.ids for i in ids)
        return f"{known} and {', '.join(map(str, void))} (void)" if void else known


def _wrong(origin: str, key: str, expected: str, got: Any) -> UserError:
    return UserError(f"{origin}: {key}: expected {expected}, got {got!r}")


def _mapping(value: Any, keys: Sequence[str], origin: str, key: str) -> Mapping[str, Any]:
    expected = f"a mapping of {', '.join(keys)}"
    if not isinstance(value, Mapping):
        raise _wrong(origin, key, expected, value)
    for name in value:
        if name not in keys:
            raise _wrong(origin, key, expected, name)
    return value


def _ids(value: Any, origin: str, key: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= 255 for i in values):
        raise _wrong(origin, key, "ids from 0 to 255", value)
    return tuple(values)


def _colour(value: Any, origin: str) -> Colour:
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            value = list(bytes.fromhex(value[1:]))
        except ValueError:
            pass
    if not isinstance(value, list) or len(value) != 3 or _ids(value, origin, "color") == ():
        raise _wrong(origin, "color", '[R, G, B] or "#RRGGBB"', value)
    return value[0], value[1], value[2]


def describe(content: Any, origin: str) -> Description:
    """The description in what a YAML file held; UserError naming `origin` and the key that is wrong."""
    given = _mapping(content, _KEYS, origin, "description")
    classes = given.get("classes")
    if not isinstance(classes, list):
        raise _wrong(origin, "classes", "a list of names, or of mappings with name, id and color", classes)
    names, ids, colours = [], [], []
    for number, one in enumerate(classes):
        one = _mapping({"name": one} if isinstance(one, str) else one, _CLASS_KEYS, origin, "classes")
        if not isinstance(one.get("name"), str):
            raise _wrong(origin, "classes", "a name for each class", one)
        names.append(one["name"])
        ids.append(_ids(one.get("id", number), origin, "id"))
        if "color" in one:
            colours.append(_colour(one["color"], origin))
    if len(colours) not in (0, len(names)):
        raise _wrong(origin, "classes", "a color for each class or for none", f"{len(colours)} of {len(names)}")
    splits = given.get("splits") or {}
    if not isinstance(splits, Mapping):
        raise _wrong(origin, "splits", "a mapping of names to images and labels, or to a list", splits)
    for name, split in splits.items():
        split = _mapping(split, _SPLIT_KEYS, origin, f"splits.{name}")
        if ("list" in split) == ("images" in split) or ("list" in split and "labels" in split):
            raise _wrong(origin, f"splits.{name}", "a list, or images with or without labels", dict(split))
    return Description(
        origin,
        tuple(names),
        tuple(ids),
        tuple(colours) or None,
        _ids(given.get("ignore") or [], origin, "ignore"),
        splits,
        str(given.get("label_ending", ".png")),
    )


def _read(root: Path, classes: Sequence[str] | None) -> tuple[Path, Description]:
    """The folder of a data set, and its description."""
    file = root / DESCRIPTION if root.is_dir() else root
    if classes is not None and root.is_dir() and not file.is_file():
        return root, describe({"classes": list(classes)}, "classes")
    if not file.is_file():
        expected = f"a folder with {DESCRIPTION}, such a file, or a folder and the names of the classes"
        raise UserError(f"{root}: no description of a data set; expected {expected}")
    if classes is not None:
        raise UserError(f"{file}: classes: expected none besides the file's own, got {', '.join(classes)}")
    try:
        content = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from error
    return file.parent, describe(content, str(file))


@dataclass(frozen=True)
class Files:
    """Files of a split.

    Attributes:
        items: image and label, or None where the split has no labels.
        unlabelled: images without a label, in a split that has labels.
        unmatched: label files without an image.
    """

    items: list[tuple[Path, Path | None]]
    unlabelled: list[Path]
    unmatched: list[Path]


def _pairs(images: Path, labels: Path | None, ending: str) -> Files:
    found = files_in(require_folder(images, "images"), recursive=True)
    if not found:
        raise UserError(f"{images}: no images")
    if labels is None:
        return Files([(image, None) for image in found], [], [])
    require_folder(labels, "labels")
    by_image = {image: labels / f"{image.relative_to(images).with_suffix('')}{ending}" for image in found}
    unlabelled = [image for image, label in by_image.items() if not label.is_file()]
    others = set(files_in(labels, {Path(f"x{ending}").suffix.lower()}, recursive=True)) - set(by_image.values())
    items: list[tuple[Path, Path | None]] = [pair for pair in by_image.items() if pair[0] not in set(unlabelled)]
    return Files(items, unlabelled, sorted(others))


def _find(root: Path, description: Description, split: str) -> Files:
    """Files of one split."""
    ending = description.label_ending
    if description.splits:
        if split not in description.splits:
            expected = f"one of {', '.join(description.splits)}"
            raise UserError(f"folder: split: expected {expected} ({description.origin}), got {split!r}")
        given = description.splits[split]
        if "list" in given:
            return Files(list(read_pairs(root / given["list"], root)), [], [])
        labels = root / given["labels"] if "labels" in given else None
        return _pairs(root / given["images"], labels, ending)
    list_file = root / f"{split}.txt"
    if list_file.is_file():
        return Files(list(read_pairs(list_file, root)), [], [])
    for images, labels in ((root / i.format(split), root / one.format(split)) for i, one in _LAYOUTS):
        if images.is_dir() and labels.is_dir():
            return _pairs(images, labels, ending)
    places = ", ".join(f"{i.format(split)} with {one.format(split)}" for i, one in _LAYOUTS)
    raise UserError(f"{root}: no {split} split; expected {split}.txt, {places}, or splits in {DESCRIPTION}")


class Folder(SegmentationDataset):
    """A data set of one's own, described by `dataset.yaml` in its folder (docs/own-data.md).

    Args:
        root: the folder, or the description itself, whose folder it then is.
        split: a split of the description, or train, val or test; trainval is train and val together.
        classes: names of the classes, ids being their numbers, for a folder without description.
        strict: false leaves images out that have no label, see `unlabelled`.

    Attributes:
        unlabelled: images without a label.
        unmatched: label files without an image.

    Raises:
        ValueError: no or a wrong description, no such split, an empty folder, an image without a label.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Transforms | None = None,
        *,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        folder, description = _read(Path(root), classes)
        parts = ("train", "val") if split == "trainval" and split not in description.splits else (split,)
        found = [_find(folder, description, part) for part in parts]
        self.unlabelled = [path for files in found for path in files.unlabelled]
        self.unmatched = [path for files in found for path in files.unmatched]
        if strict and self.unlabelled:
            some = ", ".join(path.name for path in self.unlabelled[:_NAMED])
            more = f" and {len(self.unlabelled) - _NAMED} more" if len(self.unlabelled) > _NAMED else ""
            raise UserError(
                f"{self.unlabelled[0].parent}: expected a label NAME{description.label_ending} for every image, "
                f"got none for {some}{more} (`liteseg dataset check` lists all)"
            )
        self.class_names = description.class_names
        self.palette = description.palette or default_palette(len(description.class_names))
        self._label_palette = description.palette
        self.lut = description.lut()
        self.allowed_ids = description.allowed()
        super().__init__([item for files in found for item in files.items], split=split, transform=transform, seed=seed)

    @property
    def label_palette(self) -> tuple[Colour, ...] | None:
        return self._label_palette

    @classmethod
    def splits(cls, root: str | Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
        """Names of the splits that a data set has."""
        folder, description = _read(Path(root), classes)
        if description.splits:
            return tuple(description.splits)
        usual = [(split, [f"{split}.txt", *(images.format(split) for images, _ in _LAYOUTS)]) for split in _SPLITS]
        return tuple(split for split, places in usual if any((folder / place).exists() for place in places))
