"""Data sets, class tables and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Sample, SegmentationDataset, read_image
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


def dataset(name: str, root: str | Path, split: str, **options: Any) -> SegmentationDataset:
    """Data set `name` ("camvid" or "cityscapes") found under `root`; options go to its class.

    Raises ValueError for an unknown name or split, a missing or empty folder, and missing labels.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: name: expected one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](root, split, **options)


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
