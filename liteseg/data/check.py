"""Reading all label files of a data set before anything is trained on them, and saying what is in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from liteseg.progress import progress_bar
from liteseg.reading import open_image, orientation

from .base import SegmentationDataset
from .tables import VOID

__all__ = ["Report", "check"]

# so many problems are printed
_SHOWN = 20


@dataclass
class Report:
    """What the files of a split hold.

    Attributes:
        split: its name.
        class_names: one a train id.
        file_ids: ids of each class in label files.
        images, labels: how many there are.
        sizes: (height, width) of the images, upright -> how many.
        pixels: int64 [K + 1], labelled pixels of each class, and void.
        occurs: int64 [K + 1], label files that hold each of them.
        problems: one line a file that is unreadable, does not fit, or has no counterpart.
    """

    split: str
    class_names: tuple[str, ...]
    file_ids: tuple[tuple[int, ...], ...]
    images: int = 0
    labels: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    occurs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width} ({count})" for (height, width), count in self.sizes.most_common(3))
        more = f" and {len(self.sizes) - 3} more sizes" if len(self.sizes) > 3 else ""
        lines = [f"{self.split}: {self.images} images, {self.labels} label files; {sizes}{more}"]
        if self.labels:
            total = max(int(self.pixels.sum()), 1)
            width = max(map(len, (*self.class_names, "class")))
            lines.append(f"  {'class':<{width}}  {'share of pixels':>15}  {'files':>6}  ids")
            names = (*self.class_names, "void")
            ids = (*(", ".join(map(str, one)) for one in self.file_ids), "")
            for name, pixels, files, one in zip(names, self.pixels, self.occurs, ids, strict=True):
                lines.append(f"  {name:<{width}}  {100 * pixels / total:>13.2f} %  {files:>6}  {one}".rstrip())
            never = [name for name, files in zip(self.class_names, self.occurs, strict=False) if not files]
            if never:
                lines.append(f"  never seen: {', '.join(never)}")
        if self.problems:
            lines.append(f"  {len(self.problems)} problems:")
            lines += [f"    {problem}" for problem in self.problems[:_SHOWN]]
            if len(self.problems) > _SHOWN:
                lines.append(f"    and {len(self.problems) - _SHOWN} more")
        return "\n".join(lines)


def check(data: SegmentationDataset, *, progress: bool = False) -> Report:
    """Reads the label files of all items and the headers of their images.

    Args:
        data: of a :class:`liteseg.data.folder.Folder` made with ``strict=False`` files without counterpart are told
            too.
        progress: show a progress bar on stderr.
    """
    classes = data.num_classes
    ids = tuple(tuple(np.flatnonzero(data.lut == train).tolist()) for train in range(classes))
    report = Report(data.split, tuple(data.class_names), ids)
    report.pixels, report.occurs = (np.zeros(classes + 1, np.int64) for _ in range(2))
    unlabelled: list[Any] = getattr(data, "unlabelled", [])
    report.images = len(data) + len(unlabelled)
    for index in progress_bar(range(len(data)), desc=f"check {data.split}", unit="file", show=progress):
        path, label_path = data.items[index]
        try:
            with open_image(path) as image:
                width, height = image.size if orientation(image) < 5 else image.size[::-1]
            report.sizes[height, width] += 1
            if label_path is None:
                continue
            report.labels += 1
            label = data.load_label(index)
        except (ValueError, FileNotFoundError) as error:
            report.problems.append(str(error))
            continue
        if label.shape != (height, width):
            expected = f"{width}x{height} like {path.name}"
            report.problems.append(
                f"{label_path}: label size: expected {expected}, got {label.shape[1]}x{label.shape[0]} (width x height)"
            )
        counts = np.bincount(label.ravel(), minlength=256)
        counts = np.append(counts[:classes], counts[VOID])
        report.pixels += counts
        report.occurs += counts > 0
    report.problems += [f"{path}: image without a label" for path in unlabelled]
    report.problems += [f"{path}: label without an image" for path in getattr(data, "unmatched", [])]
    return report
