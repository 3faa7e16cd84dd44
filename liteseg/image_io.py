"""Reading pictures and writing label maps and overlays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from liteseg.palette import Palette, check_palette, colorize

__all__ = [
    "IMAGE_SUFFIXES",
    "add_legend",
    "atomic_path",
    "overlay",
    "read_image",
    "rgb_array",
    "write_image",
]

# what a folder is searched for; a file named on its own is tried whatever it is called
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def rgb_array(image: Image.Image) -> np.ndarray:
    """Pixels of a PIL image as uint8 [H, W, 3] RGB.

    Greyscale is repeated over the three channels, palettes are looked up, alpha is dropped (not blended), CMYK and the
    like are converted, 16-bit samples are reduced to their high byte. EXIF orientation is not looked at: the array has
    the size of ``image``.
    """
    if image.mode.startswith("I;16"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode == "I":
        # Pillow opens some 16-bit files in this 32-bit mode
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"image: expected samples of 8 or 16 bits, got {values.min()}..{values.max()}")
        return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("image: expected samples of 8 or 16 bits, got 32-bit floating point (mode F)")
    return np.array(image.convert("RGB"))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a picture as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Modes are converted as :func:`rgb_array` does; of an animation the first frame is taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, a damaged one, or one too large to be decoded safely; the text names the file.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if file.is_dir():
        raise ValueError(f"{file}: expected a picture, got a folder")
    try:
        with Image.open(file) as image:
            return rgb_array(ImageOps.exif_transpose(image))
    except PermissionError:
        raise ValueError(f"{file}: no permission to read it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not a picture in a format that can be read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: picture too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow's decoders raise each of these for damaged files
        raise ValueError(f"{file}: damaged picture: {error}") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    Nobody ever sees half a file under the final name. The parent folders are made.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: writers choose their format by it
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes uint8 [H, W] (one channel, values as they are) or uint8 [H, W, 3] RGB; the suffix names the format."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"write_image: array: expected uint8 [H, W] or [H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def overlay(image: np.ndarray, labels: np.ndarray, palette: Palette, alpha: float = 0.5) -> np.ndarray:
    """The picture with its classes painted over it.

    Args:
        image: uint8 [H, W, 3] RGB.
        labels: uint8 [H, W]; 255 (void) leaves the picture as it is.
        palette: K rows of R, G, B.
        alpha: share of the class colour, 0..1.

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
    weight = round(alpha * 256)
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
