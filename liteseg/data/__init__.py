"""Data sets, class tables and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from liteseg.reading import SampleRange, check_value_range, read_image

from .base import Sample, SegmentationDataset
from .camvid import CamVid
from .cityscapes import Cityscapes
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
from .transforms import Augmentation, Preparation, normalise

DATASETS: dict[str, Callable[..., SegmentationDataset]] = {"camvid": CamVid, "cityscapes": Cityscapes}


def dataset(
    name: str,
    root: str | Path,
    split: str,
    *,
    value_range: SampleRange = None,
    labels_on: Literal["upright", "stored"] = "upright",
    **options: Any,
) -> SegmentationDataset:
    """Data set `name` ("camvid" or "cityscapes") found under `root`.

    Args:
        value_range: of images with more than 8 bits a sample; read off each image by default.
        labels_on: what the labels are drawn on, pictures as viewers show them ("upright") or as their files hold them
            ("stored"); see :class:`SegmentationDataset`.
        **options: for the data set's class.

    Raises:
        ValueError: an unknown name or split, a missing or empty folder, missing labels.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: name: expected one of {', '.join(DATASETS)}, got {name!r}")
    if labels_on not in ("upright", "stored"):
        raise ValueError(f"dataset: labels_on: expected upright or stored, got {labels_on!r}")
    check_value_range(value_range)
    found = DATASETS[name](root, split, **options)
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
    "Preparation",
    "Sample",
    "SegmentationDataset",
    "dataset",
    "normalise",
    "read_image",
]
