"""Pictures as they lie on a disk: which files are some, and their pixels as uint8 RGB.

Everything that reads a picture (prediction, evaluation, training, demo, benchmarks) comes through here, so all of them
see the same pixels: upright, and from black to white whatever the number of bits.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from liteseg.errors import UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "SampleRange",
    "check_value_range",
    "files_in",
    "open_image",
    "orientation",
    "raw_mode",
    "read_image",
    "rgb_array",
    "stored_orientation",
    "to_8_bits",
    "turned",
    "white_level",
]

# what a folder is searched for; a file named on its own is tried whatever it is called
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# the sample that is white, or those that are black and white; None reads it off the samples
SampleRange = float | tuple[float, float] | None

_ORIENTATION_TAG = 0x0112
# a sample with more than 8 bits is taken to hold one of these numbers of them, whatever its container could
_BITS = (8, 10, 12, 14, 16)
_MAX_16 = 2**16 - 1
# Pillow keeps the high bytes of colours with 16 bits; read in the other byte order, it keeps the low ones
_NOT_NATIVE = "16B" if sys.byteorder == "little" else "16L"
_LOW_BYTES = {
    f"{mode};{order}": f"{mode};{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("16B", "16L"), ("16L", "16B"), ("16N", _NOT_NATIVE))
}
# grey and alpha of two bytes each, and the four bytes that they are
_GREY_ALPHA, _FOUR_BYTES = "LA;16B", "RGBA"


def check_value_range(value_range: SampleRange) -> tuple[float, float] | None:
    """Black and white of a value range; ValueError unless it is a number above 0, two rising ones, or None."""
    if value_range is None:
        return None
    values = (0, value_range) if isinstance(value_range, (int, float)) else tuple(value_range)
    if len(values) != 2 or not all(map(math.isfinite, values)) or not values[0] < values[1]:
        raise UserError(f"value_range: expected a number above 0 or two rising numbers, got {value_range!r}")
    return float(values[0]), float(values[1])


def white_level(values: np.ndarray) -> int:
    """The largest sample of the number of bits that these samples seem to have: the least of 8, 10, 12, 14 and 16."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > _MAX_16:
        raise UserError(f"image: expected samples of 8 or 16 bits, or their value range, got {low}..{high}")
    return next(2**bits - 1 for bits in _BITS if high < 2**bits)


def to_8_bits(values: np.ndarray, value_range: SampleRange = None) -> np.ndarray:
    """Samples of any range as uint8; those beyond the range become black or white.

    Args:
        values: integers, or floating-point numbers where a range is given.
        value_range: the sample that is white (black is 0), or those that are black and white; :func:`white_level` of
            the samples by default.
    """
    low, high = check_value_range(value_range) or (0, white_level(values))
    # in float32: exact for 16 bits, and half of float64's memory
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file of an image that is not loaded yet, "" where that is not known."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _decoded(content: bytes, raw: str | None = None) -> np.ndarray:
    """Pixels of a file, its samples taken as `raw` says instead of as its header does."""
    image: Any
    with Image.open(io.BytesIO(content)) as image:
        if raw is not None:
            arguments = image.tile[0].args
            arguments = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
            image.tile = [image.tile[0]._replace(args=arguments)]
        return np.asarray(image)


def _deep_colours(image: Any) -> np.ndarray | None:
    """Samples uint16 [H, W, 1 or 3] of a file that is not loaded yet and has 16 bits a colour; None of others."""
    raw = raw_mode(image)
    if image.format not in ("PNG", "TIFF") or not (raw in _LOW_BYTES or raw == _GREY_ALPHA):
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    if raw == _GREY_ALPHA:
        pairs = _decoded(content, _FOUR_BYTES).astype(np.uint16)
        return (pairs[:, :, 0] << 8 | pairs[:, :, 1])[:, :, None]
    high = _decoded(content)[:, :, :3].astype(np.uint16)
    return high << 8 | _decoded(content, _LOW_BYTES[raw])[:, :, :3]


def rgb_array(image: Image.Image, value_range: SampleRange = None) -> np.ndarray:
    """Pixels of a PIL image as uint8 [H, W, 3] RGB.

    Greyscale is repeated over the three channels, palettes are looked up, alpha is dropped (not blended), CMYK and the
    like are converted. Samples of more than 8 bits are scaled to 0..255: from the range that is given, else from the
    least of 8, 10, 12, 14 and 16 bits that holds them all (12-bit samples often lie in files of 16 bits); samples of 8
    bits are left alone. EXIF orientation is not looked at: the array has the size of ``image``.

    Args:
        value_range: the sample that is white (black is 0), or those that are black and white.

    Raises:
        ValueError: samples of more than 16 bits, negative or floating-point ones, and no range given.
    """
    check_value_range(value_range)
    # what a file itself says goes before what its samples look like; Pillow has scaled those of PPM files to 16 bits
    declared = 2**12 - 1 if raw_mode(image) == "I;12" else _MAX_16 if image.format == "PPM" else None
    values = _deep_colours(image)
    if values is None and (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        values = np.asarray(image)[:, :, None]
    if values is None:
        return np.array(image.convert("RGB"))
    if value_range is None and values.dtype.kind == "f":
        raise UserError("image: expected samples of 8 or 16 bits, or their value range, got floating point (mode F)")
    pixels = to_8_bits(values, declared if value_range is None else value_range)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image's pixels, 1 (upright) to 8: what is still to be done to them."""
    # TIFF files are turned by Pillow itself, as they are loaded
    image.load()
    return _orientation_tag(image)


def stored_orientation(path: str | os.PathLike[str]) -> int:
    """EXIF orientation in a picture file, 1 (upright) to 8; :func:`open_image`'s errors."""
    with open_image(path) as image:
        return _orientation_tag(image)


def _orientation_tag(image: Image.Image) -> int:
    found = image.getexif().get(_ORIENTATION_TAG, 1)
    return found if found in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int, *, back: bool = False) -> np.ndarray:
    """Pixels [H, W, ...] stored with an EXIF orientation, upright; with ``back`` upright ones as they were stored."""
    if orientation >= 5:
        # 6 goes clockwise and 8 the other way; 5 and 7 are their own opposites
        pixels = np.rot90(pixels, 1 if (orientation in (5, 8)) != (back and orientation in (6, 8)) else -1)
    elif orientation in (2, 3):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 5, 7):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file, open inside the block; whatever is wrong with the file comes out as one of these errors.

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
            yield image
    except UserError as error:
        raise ValueError(f"{file}: {error}") from error
    except PermissionError:
        raise ValueError(f"{file}: no permission to read it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not a picture in a format that can be read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file}: picture too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow's decoders raise each of these for damaged files
        raise ValueError(f"{file}: damaged picture: {error}") from error


def read_image(path: str | os.PathLike[str], value_range: SampleRange = None) -> np.ndarray:
    """Reads a picture as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    Modes and samples are converted as :func:`rgb_array` does; of an animation the first frame is taken.

    Args:
        value_range: of files with more than 8 bits a sample, see :func:`rgb_array`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, a damaged one, or one too large to be decoded safely; the text names the file.
    """
    with open_image(path) as image:
        return turned(rgb_array(image, value_range), orientation(image))


def files_in(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES, *, recursive: bool = False) -> list[Path]:
    """Files of a folder with one of these suffixes (lower case), sorted by name; hidden files and folders are not seen.

    Hidden means a name that begins with a dot: ``._x.jpg`` is no picture, but what some systems write beside x.jpg.
    """
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
