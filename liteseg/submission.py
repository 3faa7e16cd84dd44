"""The zip file that the Cityscapes test server takes."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from liteseg.atomic import atomic_path
from liteseg.data import CITYSCAPES_TRAIN_TO_LABEL
from liteseg.predict import evaluating, predict_at
from liteseg.progress import progress_bar

__all__ = ["SERVER_SIZE", "submission_name", "write_submission"]

# the server wants every label map at the size of the original images
SERVER_SIZE = (1024, 2048)


def submission_name(path: str | Path) -> str:
    """``CITY_SEQUENCE_FRAME.png`` of a Cityscapes image: the server finds the image by these three."""
    match = re.match(r"([A-Za-z-]+_\d{6}_\d{6})(_|$)", Path(path).stem)
    if match is None:
        raise ValueError(
            f"write_submission: {path}: expected a name like berlin_000000_000019_leftImg8bit.png, "
            f"got {Path(path).name}"
        )
    return f"{match[1]}.png"


def write_submission(
    model: nn.Module, dataset: Any, path: str | Path, *, scale: float | None = None, progress: bool = False
) -> int:
    """Segments every image of a Cityscapes split and writes the server's zip file.

    One 8-bit single-channel PNG an image, 1024 high and 2048 wide, holding labelIds (7..33), named
    ``CITY_SEQUENCE_FRAME.png``. Labels are taken from the low-resolution logits straight at 1024x2048, whatever the
    size of the image file. The zip appears under its name only when it is complete.

    Args:
        model: 19 classes, Cityscapes train ids.
        dataset: a :class:`liteseg.data.Cityscapes`; labels are not read from it.
        path: name of the zip file.
        scale: input scale; ``model.config.input_scale`` by default.
        progress: show a progress bar on stderr.

    Returns:
        The number of label maps in the zip.

    Raises:
        ValueError: no images, other than 19 classes, an image name without city, sequence and frame, or two images of
            one name.
    """
    label_ids = np.array(CITYSCAPES_TRAIN_TO_LABEL, dtype=np.uint8)
    classes = len(label_ids)
    has = getattr(getattr(model, "config", None), "num_classes", classes)
    if has != classes or dataset.num_classes != classes:
        raise ValueError(
            f"write_submission: model: expected {classes} classes (Cityscapes) in model and data set, "
            f"got {has} and {dataset.num_classes}"
        )
    if len(dataset) == 0:
        raise ValueError("write_submission: dataset: expected at least one image, got none")
    written: dict[str, Path] = {}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with evaluating(model) as ready:
            for i in progress_bar(range(len(dataset)), desc="submission", unit="image", show=progress):
                sample = dataset.load(i)
                name = submission_name(sample.path)
                if name in written:
                    raise ValueError(
                        f"write_submission: dataset: expected one image named {name}, got {written[name]} and "
                        f"{sample.path}"
                    )
                written[name] = sample.path
                labels = predict_at(ready, sample.image, SERVER_SIZE, scale=scale)
                buffer = io.BytesIO()
                Image.fromarray(label_ids[labels]).save(buffer, format="PNG")
                archive.writestr(name, buffer.getvalue())
    return len(written)
