"""Data sets, class tables and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from liteseg.imports import imported
from liteseg.reading import SampleRange, check_value_range, read_image

from .base import Sample, SegmentationDataset
from .camvid import CamVid
from .check import Report, check
from .cityscapes import Cityscapes
from .folder import Folder
from .tables import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    CITYSCAPES_CATEGORIES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    CITYSCAPES_TRAIN_TO_LABEL,
    MEAN,
    STD,
    VOID,
)
from .transforms import Augmentation, Pipeline, Preparation, normalise

DATASETS: dict[str, Callable[..., SegmentationDataset]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": Folder,
}


def _class(name: str) -> Callable[..., SegmentationDataset]:
    """The class of a data set: one of ours, or one that a dotted path names."""
    if name in DATASETS:
        return DATASETS[name]
    if "." not in name.replace(":", "."):
        raise ValueError(
            f"dataset: name: expected one of {', '.join(DATASETS)}, or the path of a class such as mine.Lawn, "
            f"got {name!r}"
        )
    found = imported(name, "dataset: name")
    if not (isinstance(found, type) and issubclass(found, SegmentationDataset)):
        raise ValueError(f"dataset: name: expected a SegmentationDataset, got {name}: {found!r}")
    return found


def dataset(
    name: str,
    root: str | Path,
    split: str,
    *,
    value_range: SampleRange = None,
    labels_on: Literal["upright", "stored"] = "upright",
    **options: Any,
) -> SegmentationDataset:
    """Data set `name` found under `root`.

    Args:
        name: "camvid", "cityscapes", "folder" (one's own, see :class:`liteseg.data.folder.Folder`), or the path of a
            class such as ``mine.Lawn``.
        value_range: of images with more than 8 bits a sample; read off each image by default.
        labels_on: what the labels are drawn on, pictures as viewers show them ("upright") or as their files hold them
            ("stored"); see :class:`SegmentationDataset`.
        **options: for the data set's class.

    Raises:
        ValueError: an unknown name or split, a missing or empty folder, missing labels.
    """
    kind = _class(name)
    if labels_on not in ("upright", "stored"):
        raise ValueError(f"dataset: labels_on: expected upright or stored, got {labels_on!r}")
    check_value_range(value_range)
    found = kind(root, split, **options)
    found.value_range, found.labels_on = value_range, labels_on
    return found


__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_PALETTE",
    "CITYSCAPES_CATEGORIES",
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_PALETTE",
    "CITYSCAPES_TRAIN_TO_LABEL",
    "DATASETS",
    "MEAN",
    "STD",
    "VOID",
    "Augmentation",
    "CamVid",
    "Cityscapes",
    "Folder",
    "Pipeline",
    "Preparation",
    "Report",
    "Sample",
    "SegmentationDataset",
    "check",
    "dataset",
    "normalise",
    "read_image",
]
