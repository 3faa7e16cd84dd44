"""Colours of classes: the data set's own where it has one, an invented but fixed set otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from liteseg.data import CAMVID_CLASSES, CAMVID_PALETTE, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from liteseg.data.tables import default_palette

__all__ = ["check_palette", "colorize", "palette_for"]

Palette = Sequence[tuple[int, int, int]]

_KNOWN = ((CAMVID_CLASSES, CAMVID_PALETTE), (CITYSCAPES_CLASSES, CITYSCAPES_PALETTE))


def palette_for(class_names: Sequence[str] | None, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The palette of the data set whose class names these are, :func:`default_palette` for unknown ones."""
    if class_names is not None:
        wanted = [name.casefold() for name in class_names]
        for names, palette in _KNOWN:
            if [name.casefold() for name in names] == wanted:
                return palette
    return default_palette(num_classes)


def check_palette(palette: Palette | npt.ArrayLike) -> np.ndarray:
    """The palette as uint8 [K, 3]; ValueError unless it has K rows of three values 0..255."""
    table = np.asarray(palette)
    if table.ndim != 2 or table.shape[1] != 3 or not 1 <= len(table) <= 256:
        raise ValueError(f"colorize: palette: expected 1 to 256 rows of 3 values, got shape {table.shape}")
    if not np.issubdtype(table.dtype, np.integer) or table.min() < 0 or table.max() > 255:
        raise ValueError(f"colorize: palette: expected integers 0..255, got {table.dtype} {table.min()}..{table.max()}")
    return table.astype(np.uint8)


def colorize(labels: np.ndarray, palette: Palette | npt.ArrayLike) -> np.ndarray:
    """Colours of a label map.

    Args:
        labels: uint8 [H, W], ids 0..K-1, or 255 (void), which is painted black.
        palette: K rows of R, G, B in 0..255.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    table = check_palette(palette)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"colorize: labels: expected uint8 [H, W], got {labels.dtype} {list(labels.shape)}")
    lookup = np.zeros((256, 3), dtype=np.uint8)
    lookup[: len(table)] = table
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [int(i) for i in present if i >= len(table) and i != 255]
    if wrong:
        raise ValueError(f"colorize: labels: expected ids 0..{len(table) - 1} or 255, got {wrong}")
    return lookup[labels]
