"""Confusion matrix and the segmentation scores computed from it.

The rules are those of the Cityscapes evaluation (cityscapesScripts, pixel-level task), stated on train ids:

* void target pixels (``ignore_index``) are dropped before anything is counted, whatever was predicted there, so a false
  positive inside a void region costs nothing;
* a labelled pixel predicted as ``ignore_index`` is a false negative of its class and a false positive of nobody;
* class IoU is ``tp / (tp + fp + fn)`` over the sums of all images, not a mean over images; a class with
  ``tp + fp + fn == 0`` is absent: NaN, and left out of the mean;
* category IoU merges the classes of a category before counting: confusing two classes of one category is a true
  positive of the category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["ConfusionMatrix", "mean_of_present"]

Absent = Literal["nan", "zero"]


def _integer_array(name: str, value: npt.ArrayLike | torch.Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"ConfusionMatrix.update: {name}: expected an integer array, got {array.dtype}")
    return array


def _check_absent(function: str, absent: str) -> None:
    if absent not in ("nan", "zero"):
        raise ValueError(f'{function}: absent: expected "nan" or "zero", got {absent!r}')


def mean_of_present(values: npt.ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN when there is none (and no warning)."""
    array = np.asarray(values, dtype=np.float64)
    present = array[~np.isnan(array)]
    return float(present.mean()) if present.size else float("nan")


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs, summed over any number of images.

    Args:
        num_classes: K; valid ids are 0..K-1.
        ignore_index: id of void target pixels, outside 0..K-1.

    Attributes:
        matrix: int64 [K, K], rows are the truth, columns the prediction.
        missed: int64 [K], labelled pixels of each true class that were predicted as ``ignore_index``.

    Example:
        >>> cm = ConfusionMatrix(2)
        >>> cm.update([[0, 1], [1, 1]], [[0, 0], [1, 255]])
        >>> cm.matrix.tolist(), cm.class_iou().tolist(), cm.mean_iou()
        ([[1, 1], [0, 1]], [0.5, 0.5], 0.5)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes: expected at least 1, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ConfusionMatrix: ignore_index: expected a value outside 0..{num_classes - 1}, got {ignore_index}"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.missed = np.zeros(num_classes, dtype=np.int64)

    def __repr__(self) -> str:
        return (
            f"ConfusionMatrix(num_classes={self.num_classes}, ignore_index={self.ignore_index}, pixels={self.pixels})"
        )

    @property
    def pixels(self) -> int:
        """Labelled pixels counted so far."""
        return int(self.matrix.sum() + self.missed.sum())

    def _check_ids(self, name: str, values: np.ndarray) -> None:
        if not values.size:
            return
        low, high = int(values.min()), int(values.max())
        if 0 <= low and high < self.num_classes:
            return
        found = np.unique(values)
        wrong = [int(i) for i in found if not 0 <= i < self.num_classes and i != self.ignore_index]
        if wrong:
            shown = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
            raise ValueError(
                f"ConfusionMatrix.update: {name}: expected ids 0..{self.num_classes - 1} or {self.ignore_index} "
                f"(void), got {shown}"
            )

    def update(self, prediction: npt.ArrayLike | torch.Tensor, target: npt.ArrayLike | torch.Tensor) -> None:
        """Counts one prediction against its target.

        Args:
            prediction: integer array or tensor of any shape, train ids.
            target: integer array or tensor of the same shape, train ids or ``ignore_index``.

        Raises:
            TypeError: an array that is not integer.
            ValueError: shapes differ, or an id is outside 0..K-1 and not ``ignore_index`` (the ids found are named).
                Nothing is counted then.
        """
        predicted, true = _integer_array("prediction", prediction), _integer_array("target", target)
        if predicted.shape != true.shape:
            raise ValueError(
                f"ConfusionMatrix.update: prediction: expected the target's shape {true.shape}, got {predicted.shape}"
            )
        self._check_ids("prediction", predicted)
        self._check_ids("target", true)
        labelled = true != self.ignore_index
        # int64 before the product: uint8 ids would wrap around
        rows = true[labelled].astype(np.int64)
        columns = predicted[labelled].astype(np.int64)
        columns[columns == self.ignore_index] = self.num_classes
        k = self.num_classes
        counts = np.bincount(rows * (k + 1) + columns, minlength=k * (k + 1)).reshape(k, k + 1)
        self.matrix += counts[:, :k]
        self.missed += counts[:, k]

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds another matrix's counts (another process, another part of the data)."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(f"ConfusionMatrix.merge: other: expected the same classes as {self!r}, got {other!r}")
        self.matrix += other.matrix
        self.missed += other.missed

    def reset(self) -> None:
        """Forgets all counts."""
        self.matrix[:] = 0
        self.missed[:] = 0

    def class_iou(self, absent: Absent = "nan") -> np.ndarray:
        """IoU of each class, float64 [K].

        Args:
            absent: value for a class that occurs neither in the targets nor in the predictions: ``"nan"``
                (cityscapesScripts) or ``"zero"`` (the authors' LiteSeg evaluation: 1e-15 added to the denominator).
        """
        _check_absent("ConfusionMatrix.class_iou", absent)
        hits = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(axis=1) + self.missed + self.matrix.sum(axis=0) - np.diag(self.matrix)
        empty = 0.0 if absent == "zero" else np.nan
        return np.where(union > 0, hits / np.maximum(union, 1), empty)

    def mean_iou(self, absent: Absent = "nan") -> float:
        """Mean class IoU: over the classes present (``absent="nan"``) or over all K classes (``"zero"``)."""
        return mean_of_present(self.class_iou(absent))

    def category_iou(self, categories: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """IoU of each category, the classes of a category merged before counting.

        With S the train ids of a category: ``tp`` = labelled pixels of S predicted as any id of S, ``fn`` = labelled
        pixels of S predicted as anything else (void included), ``fp`` = labelled pixels outside S predicted as an id of
        S; void pixels count nowhere. ``tp + fp + fn == 0`` gives NaN.

        Args:
            categories: name -> train ids; no id may appear twice.
        """
        seen: set[int] = set()
        result: dict[str, float] = {}
        for name, ids in categories.items():
            wrong = [i for i in ids if not 0 <= i < self.num_classes or i in seen]
            if wrong or len(set(ids)) != len(ids):
                raise ValueError(
                    f"ConfusionMatrix.category_iou: categories[{name!r}]: expected ids 0..{self.num_classes - 1}, each "
                    f"in one category, got {list(ids)}"
                )
            seen.update(ids)
            members = np.zeros(self.num_classes, dtype=bool)
            members[list(ids)] = True
            tp = int(self.matrix[members][:, members].sum())
            fn = int(self.matrix[members].sum() + self.missed[members].sum()) - tp
            fp = int(self.matrix[~members][:, members].sum())
            result[name] = tp / (tp + fp + fn) if tp + fp + fn else float("nan")
        return result

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that were predicted right; NaN when there are none."""
        return int(np.trace(self.matrix)) / self.pixels if self.pixels else float("nan")

    def to_dict(
        self, class_names: Sequence[str] | None = None, categories: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, Any]:
        """All scores and the raw counts as plain Python values (JSON can hold them; NaN becomes None)."""
        names = [str(i) for i in range(self.num_classes)] if class_names is None else list(class_names)
        if len(names) != self.num_classes:
            raise ValueError(
                f"ConfusionMatrix.to_dict: class_names: expected {self.num_classes} names, got {len(names)}"
            )
        result: dict[str, Any] = {
            "mean_iou": _plain(self.mean_iou()),
            "pixel_accuracy": _plain(self.pixel_accuracy()),
            "class_iou": {n: _plain(v) for n, v in zip(names, self.class_iou(), strict=True)},
        }
        if categories is not None:
            scores = self.category_iou(categories)
            result["mean_category_iou"] = _plain(mean_of_present(list(scores.values())))
            result["category_iou"] = {n: _plain(v) for n, v in scores.items()}
        result["pixels"] = self.pixels
        result["matrix"] = self.matrix.tolist()
        result["missed"] = self.missed.tolist()
        return result


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
