"""Writing label maps and overlays."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from liteseg.atomic import atomic_path
from liteseg.palette import Palette, check_palette, colorize

__all__ = ["add_legend", "overlay", "write_image", "write_labels"]


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, palette: Palette) -> None:
    """Writes uint8 [H, W] as a PNG of 8 bits whose values are the ids and whose palette is the classes' colours.

    Viewers show the colours; NumPy arrays of the opened image hold the ids. Ids without a class, 255 (void) among them,
    are black.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"write_labels: labels: expected uint8 [H, W], got {labels.dtype} {list(labels.shape)}")
    colours = np.zeros((256, 3), dtype=np.uint8)
    table = check_palette(palette)
    colours[: len(table)] = table
    image = Image.frombytes("P", labels.shape[::-1], np.ascontiguousarray(labels).tobytes())
    image.putpalette(colours.tobytes())
    with atomic_path(path) as temporary:
        # a palette of few colours would be packed into fewer bits
        image.save(temporary, format="PNG", bits=8)


def write_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes uint8 [H, W] (one channel, values as they are) or uint8 [H, W, 3] RGB; the suffix names the format."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"write_image: array: expected uint8 [H, W] or [H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Palette,
    alpha: float = 0.5,
    confidence: np.ndarray | None = None,
) -> np.ndarray:
    """The picture with its classes painted over it.

    Args:
        image: uint8 [H, W, 3] RGB.
        labels: uint8 [H, W]; 255 (void) leaves the picture as it is.
        palette: K rows of R, G, B.
        alpha: share of the class colour, 0..1.
        confidence: float [H, W] in 0..1, by which that share is multiplied: the less sure, the fainter.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"overlay: alpha: expected a number from 0 to 1, got {alpha}")
    if image.dtype != np.uint8 or image.shape != (*labels.shape, 3):
        raise ValueError(
            f"overlay: image: expected uint8 {[*labels.shape, 3]} as the labels have it, got {image.dtype} "
            f"{list(image.shape)}"
        )
    colours = colorize(labels, palette)
    # 8-bit fixed point: exact at alpha 0 and 1, and no float copy of a large picture
    weight: int | np.ndarray = round(alpha * 256)
    if confidence is not None:
        if confidence.shape != labels.shape:
            raise ValueError(
                f"overlay: confidence: expected {list(labels.shape)} as the labels have it, got "
                f"{list(confidence.shape)}"
            )
        weight = np.rint(np.clip(confidence, 0, 1) * weight).astype(np.uint16)[:, :, None]
    mixed = (image.astype(np.uint16) * (256 - weight) + colours.astype(np.uint16) * weight + 128) >> 8
    result = np.minimum(mixed, 255).astype(np.uint8)
    void = labels == 255
    result[void] = image[void]
    return result


def add_legend(image: np.ndarray, palette: Palette, class_names: Sequence[str]) -> np.ndarray:
    """Adds a white strip on the right with a swatch and the name of each class.

    Returns:
        uint8 [H', W', 3] with W' > W, and H' > H where the names need more height.
    """
    table = check_palette(palette)
    if len(table) != len(class_names):
        raise ValueError(f"add_legend: class_names: expected {len(table)} names, got {len(class_names)}")
    row = min(24, max(12, image.shape[0] // (len(class_names) + 1)))
    font = ImageFont.load_default(size=row * 0.7)
    text_width = max(int(font.getlength(name)) for name in class_names)
    height, width = max(image.shape[0], row * len(class_names)), image.shape[1] + text_width + 2 * row
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    left = image.shape[1] + row // 3
    for i, (name, colour) in enumerate(zip(class_names, table, strict=True)):
        top = i * row
        draw.rectangle((left, top + 2, left + row - 4, top + row - 3), fill=tuple(map(int, colour)), outline="black")
        draw.text((left + row, top + row // 2), name, fill="black", font=font, anchor="lm")
    return np.array(canvas)
