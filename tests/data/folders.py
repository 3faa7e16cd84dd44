"""Small CamVid and Cityscapes folders made of random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)
CAMVID_IDS = tuple(range(12))
CITYSCAPES_IDS = tuple(range(34))


def write_pair(image: Path, label: Path, ids: tuple[int, ...], size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """A random picture and labels that hold every one of `ids`."""
    rng = np.random.default_rng(seed)
    write_image(image, size, rng)
    write_label(label, np.resize(np.array(ids, dtype=np.uint8), size))


def write_image(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_label(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def camvid(
    root: Path, counts: dict[str, int] | None = None, *, lists: bool = True, size: tuple[int, int] = SIZE
) -> Path:
    """A CamVid folder; `lists` writes train.txt and so on as well."""
    for number, (split, count) in enumerate((counts or {"train": 4, "val": 2, "test": 1}).items()):
        lines = []
        for index in range(count):
            image, label = f"{split}/{split}_{index:03d}.png", f"{split}annot/{split}_{index:03d}.png"
            write_pair(root / image, root / label, CAMVID_IDS, size, seed=100 * number + index)
            lines.append(f"{image} {label}\n")
        if lists:
            (root / f"{split}.txt").write_text("".join(lines))
    return root


def cityscapes(root: Path, layout: str, mode: str, splits: tuple[str, ...], *, per_city: int = 2) -> Path:
    """A Cityscapes folder. layout: "zips" as unpacked, "authors" as the LiteSeg authors have it."""
    kind = {"fine": "gtFine", "coarse": "gtCoarse"}[mode]
    images = "leftImg8bit"
    labels = kind
    if layout == "authors":
        images = "leftImg8bit_trainvaltest/leftImg8bit" if mode == "fine" else "leftImg8bit"
        labels = "gtFine_trainvaltest/gtFine" if mode == "fine" else "gtCoarse/gtCoarse"
    for split in splits:
        for city in ("aachen", "ulm"):
            for index in range(per_city):
                stem = f"{city}_{index:06d}_000019"
                image = root / images / split / city / f"{stem}_leftImg8bit.png"
                label = root / labels / split / city / f"{stem}_{kind}_labelIds.png"
                if split == "test":
                    write_image(image, SIZE, np.random.default_rng(index))
                else:
                    write_pair(image, label, CITYSCAPES_IDS, seed=index)
    return root


OWN = """\
classes:
  - {name: grass, id: 0, color: [0, 160, 0]}
  - {name: path, id: 7, color: "#a0a0a0"}
  - {name: "flower bed", id: [200, 201], color: [255, 0, 255]}
ignore: [9]
label_ending: _mask.png
splits:
  train: {images: pictures/train, labels: masks/train}
  val: {images: pictures/val, labels: masks/val}
  new: {images: pictures/val}
"""


def own(root: Path, counts: dict[str, int] | None = None, size: tuple[int, int] = SIZE) -> Path:
    """A data set of one's own: three classes, ids 0, 7 and 200, and 9 for void."""
    for number, (split, count) in enumerate((counts or {"train": 4, "val": 2}).items()):
        for index in range(count):
            name = f"{split}_{index:03d}"
            write_image(root / "pictures" / split / f"{name}.jpg", size, np.random.default_rng(100 * number + index))
            ids = np.resize(np.array([0, 0, 7, 200, 9], dtype=np.uint8), size)
            write_label(root / "masks" / split / f"{name}_mask.png", ids)
    (root / "dataset.yaml").write_text(OWN)
    return root
