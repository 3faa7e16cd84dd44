"""Scores of a model on a data set."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from liteseg.atomic import atomic_path
from liteseg.distributed import rank, shared_errors, sum_counts, world_size
from liteseg.metrics import ConfusionMatrix, mean_of_present
from liteseg.predict import evaluating, input_size, predict_at
from liteseg.progress import progress_bar

__all__ = ["EvaluationResult", "center_crop", "evaluate", "parse_crop"]


@dataclass(frozen=True)
class EvaluationResult:
    """What :func:`evaluate` measured, and how.

    Attributes:
        matrix: pixel counts over the whole set.
        class_names: K names.
        categories: category name -> train ids, None for data sets without categories.
        images: number of images counted.
        settings: crop, scale, flip, height x width of the first image (cropped) and of the network's input for it; the
            command line adds data set, split, weights, model and dtype.
    """

    matrix: ConfusionMatrix
    class_names: tuple[str, ...]
    categories: Mapping[str, Sequence[int]] | None
    images: int
    settings: dict[str, Any]

    @property
    def class_iou(self) -> np.ndarray:
        """float64 [K], NaN for classes that do not occur."""
        return self.matrix.class_iou()

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return self.matrix.mean_iou()

    @property
    def category_iou(self) -> dict[str, float] | None:
        """IoU of each category, None for data sets without categories."""
        return None if self.categories is None else self.matrix.category_iou(self.categories)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return self.matrix.pixel_accuracy()

    def table(self) -> str:
        """The scores in per cent, as text for people."""
        rows = list(zip(self.class_names, self.class_iou, strict=True))
        categories = self.category_iou
        names = [*self.class_names, *(categories or ()), "mean category IoU"]
        width = max(map(len, names))
        lines = [f"{name:<{width}}  {_percent(value):>6}" for name, value in rows]
        lines.append("-" * (width + 8))
        lines.append(f"{'mean IoU':<{width}}  {_percent(self.mean_iou):>6}")
        lines.append(f"{'pixel accuracy':<{width}}  {_percent(self.pixel_accuracy):>6}")
        if categories is not None:
            lines.append("-" * (width + 8))
            lines += [f"{name:<{width}}  {_percent(value):>6}" for name, value in categories.items()]
            lines.append("-" * (width + 8))
            lines.append(f"{'mean category IoU':<{width}}  {_percent(mean_of_present(list(categories.values()))):>6}")
        shown = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in self.settings.items() if v is not None)
        lines.append(f"{self.images} images, void ignored; {shown}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Scores, counts and settings as plain values; NaN becomes None."""
        return {
            "images": self.images,
            "settings": self.settings,
            **self.matrix.to_dict(self.class_names, self.categories),
        }

    def write(self, path: str | Path) -> None:
        """Writes the result: ``.json`` everything, ``.csv`` one row a score (kind, name, value in 0..1)."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".json", ".csv"):
            raise ValueError(
                f"EvaluationResult.write: path: expected a name ending in .json or .csv, got {str(path)!r}"
            )
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".json":
                json.dump(self.to_dict(), file, indent=1)
                file.write("\n")
                return
            writer = csv.writer(file)
            writer.writerow(("kind", "name", "value"))
            values = self.to_dict()
            writer.writerows(("class_iou", name, _cell(v)) for name, v in values["class_iou"].items())
            writer.writerows(("category_iou", name, _cell(v)) for name, v in values.get("category_iou", {}).items())
            for kind in ("mean_iou", "mean_category_iou", "pixel_accuracy"):
                if kind in values:
                    writer.writerow((kind, "", _cell(values[kind])))
            writer.writerow(("images", "", self.images))
            writer.writerows(("setting", name, v) for name, v in self.settings.items() if v is not None)


def _percent(value: float) -> str:
    return "absent" if np.isnan(value) else f"{100 * value:.2f}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def parse_crop(text: str | None) -> tuple[int, int] | None:
    """(height, width) of a crop written ``center:HxW``; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"center:(\d+)x(\d+)", text)
    if match is None or 0 in (height := int(match[1]), width := int(match[2])):
        raise ValueError(f'evaluate: crop: expected "center:HEIGHTxWIDTH" such as "center:512x1024", got {text!r}')
    return height, width


def center_crop(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of [H, W, ...]; an odd remainder is rounded half to even, as the authors' evaluation does."""
    top, left = (round((have - want) / 2) for have, want in zip(array.shape, size, strict=False))
    return array[top : top + size[0], left : left + size[1]]


def _count(
    model: nn.Module,
    sample: Any,
    matrix: ConfusionMatrix,
    crop: tuple[int, int] | None,
    scale: float,
    flip: bool,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Counts one image; its size (cropped) and that of the network's input for it, height and width."""
    if sample.label is None:
        raise ValueError(f"evaluate: dataset: expected labels, got none for {sample.path}")
    image, label = sample.image, sample.label
    try:
        if image.shape[:2] != label.shape:
            raise ValueError(f"evaluate: label: expected {image.shape[:2]} as the image has, got {label.shape}")
        if crop is not None:
            if image.shape[0] < crop[0] or image.shape[1] < crop[1]:
                raise ValueError(
                    f"evaluate: crop: expected images of at least {crop[0]}x{crop[1]}, "
                    f"got {image.shape[0]}x{image.shape[1]}"
                )
            image, label = center_crop(image, crop), center_crop(label, crop)
        matrix.update(predict_at(model, image, scale=scale, flip=flip), label)
    except ValueError as error:
        raise ValueError(f"{sample.path}: {error}") from error
    shape = (image.shape[0], image.shape[1])
    return shape, input_size(shape, scale)


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    crop: str | None = None,
    scale: float | None = None,
    flip: bool = False,
    progress: bool = False,
) -> EvaluationResult:
    """Runs a model over a labelled data set, one image at a time, and counts pixels.

    Every image goes the way of :func:`liteseg.predict`: normalised, run at the input scale, labels taken from the
    low-resolution logits straight at the label's size. No augmentation, nothing random. Inside a torch.distributed
    process group each process takes its share of the images and all return the counts of all images.

    Args:
        model: its ``config.num_classes``, where it has one, must be the data set's.
        dataset: a :class:`liteseg.data.SegmentationDataset` (``load(i)`` with labels).
        crop: None for whole images, or ``"center:512x1024"``: only the middle of image *and* label is looked at, at
            full resolution. That crop is what the LiteSeg paper calls 512x1024; it is not half resolution.
        scale: input scale; ``model.config.input_scale`` by default.
        flip: average the logits with those of the mirrored image.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: class counts differ, the set is empty or has no labels, an image is smaller than the crop or than
            32 pixels, a label holds unknown ids; the text names the file.
    """
    size = parse_crop(crop)
    num_classes = int(dataset.num_classes)
    has = getattr(getattr(model, "config", None), "num_classes", num_classes)
    if has != num_classes:
        raise ValueError(f"evaluate: model: expected {num_classes} classes as the data set has, got {has}")
    if len(dataset) == 0:
        raise ValueError("evaluate: dataset: expected at least one image, got none")
    if scale is None:
        scale = float(getattr(getattr(model, "config", None), "input_scale", 1.0))
    matrix = ConfusionMatrix(num_classes, dataset.ignore_index)
    settings: dict[str, Any] = {"crop": crop, "scale": scale, "flip": flip}
    share = range(rank(), len(dataset), world_size())
    with shared_errors(), evaluating(model) as ready:
        for i in progress_bar(share, desc="evaluate", unit="image", show=progress and rank() == 0):
            at = _count(ready, dataset.load(i), matrix, size, scale, flip)
            if i == 0:
                settings["first_image"], settings["first_input"] = (f"{height}x{width}" for height, width in at)
    sum_counts(matrix)
    return EvaluationResult(
        matrix=matrix,
        class_names=tuple(dataset.class_names),
        categories=getattr(dataset, "categories", None),
        images=len(dataset),
        settings=settings,
    )
