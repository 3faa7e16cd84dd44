"""Augmentation and input preparation on NumPy arrays and Pillow images.

Every transform maps (Sample, numpy Generator) to a dict that the default collate function can batch:
image float32 [3, H, W] (normalised), label uint8 [H, W] (255 = void; absent where the sample has none), path str.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .base import Sample
from .tables import MEAN, STD, VOID

_BILINEAR = Image.Resampling.BILINEAR
_NEAREST = Image.Resampling.NEAREST
_MEAN_255 = np.asarray(MEAN, dtype=np.float32) * 255.0
_STD_255 = np.asarray(STD, dtype=np.float32) * 255.0


def normalise(image: np.ndarray) -> torch.Tensor:
    """uint8 or float [H, W, 3] RGB in 0..255 -> float32 [3, H, W], ImageNet mean and deviation removed."""
    scaled = (image.astype(np.float32) - _MEAN_255) / _STD_255
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def _pack(image: torch.Tensor, label: np.ndarray | None, sample: Sample) -> dict[str, Any]:
    packed: dict[str, Any] = {"image": image, "path": str(sample.path)}
    if label is not None:
        # a copy: arrays borrowed from Pillow are read-only
        packed["label"] = torch.from_numpy(label.copy())
    return packed


def _require_range(name: str, values: tuple[float, float], low: float) -> None:
    if not low < values[0] <= values[1]:
        raise ValueError(f"augment: {name}: expected two rising numbers above {low:g}, got {list(values)}")


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip, rotation and colour jitter for training.

    Args:
        crop: height and width of the result in pixels.
        scale: range of the uniform scale factor applied before cropping.
        flip: probability of a horizontal flip.
        brightness: range of the uniform factor on the pixel values.
        contrast: range of the uniform factor on the distance from the picture's mean grey.
        rotate: largest angle in degrees, drawn uniformly from both sides; 0 for none. Corners become void.
        small: what happens when the scaled picture is smaller than the crop. "pad" fills up with void labels and the
            mean colour; "stretch" resizes the whole scaled picture to the crop size, as the LiteSeg authors do.
        fill: colour of padding and rotated corners: "mean" (zero after normalisation) or "black".
    """

    crop: tuple[int, int] = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    brightness: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    small: Literal["pad", "stretch"] = "pad"
    fill: Literal["mean", "black"] = "mean"

    def __post_init__(self) -> None:
        if min(self.crop) < 32:
            raise ValueError(f"augment: crop: expected height and width of at least 32, got {list(self.crop)}")
        _require_range("scale", self.scale, 0.0)
        _require_range("brightness", self.brightness, 0.0)
        _require_range("contrast", self.contrast, 0.0)
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"augment: flip: expected a probability, got {self.flip}")
        if not 0.0 <= self.rotate <= 180.0:
            raise ValueError(f"augment: rotate: expected degrees in 0..180, got {self.rotate}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.label is None:
            raise ValueError(f"{sample.path}: no label: training needs one")
        # all numbers are drawn up front and in this order, so switching one step off leaves the others' draws alone
        scale = float(rng.uniform(*self.scale))
        place = rng.random(2)
        flip = bool(rng.random() < self.flip)
        angle = float(rng.uniform(-self.rotate, self.rotate))
        brightness = float(rng.uniform(*self.brightness))
        contrast = float(rng.uniform(*self.contrast))

        image, label, (top, left) = self._scaled_crop(sample.image, sample.label, scale, place)
        if flip:
            image, label = (
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                label.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            )
        pixels = _jitter(np.asarray(image, dtype=np.float32), brightness, contrast)
        ids = np.asarray(label)
        crop_h, crop_w = self.crop
        colour = _MEAN_255 if self.fill == "mean" else np.zeros(3, dtype=np.float32)
        if ids.shape != (crop_h, crop_w):
            padded = np.empty((crop_h, crop_w, 3), dtype=np.float32)
            padded[:] = colour
            padded_ids = np.full((crop_h, crop_w), VOID, dtype=np.uint8)
            window = np.s_[top : top + ids.shape[0], left : left + ids.shape[1]]
            padded[window] = pixels
            padded_ids[window] = ids
            pixels, ids = padded, padded_ids
        if angle:
            pixels, ids = _rotate(pixels, ids, angle, colour)
        return _pack(normalise(pixels), ids, sample)

    def _scaled_crop(
        self, image: np.ndarray, label: np.ndarray, scale: float, place: np.ndarray
    ) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
        """Scaled and cropped picture and labels, and where they go inside a padded crop (top, left)."""
        height, width = label.shape
        scaled_h, scaled_w = max(1, round(height * scale)), max(1, round(width * scale))
        crop_h, crop_w = self.crop
        picture, ids = Image.fromarray(image), Image.fromarray(label)
        if self.small == "stretch" and (scaled_h < crop_h or scaled_w < crop_w):
            picture = picture.resize((scaled_w, scaled_h), _BILINEAR).resize((crop_w, crop_h), _BILINEAR)
            ids = ids.resize((scaled_w, scaled_h), _NEAREST).resize((crop_w, crop_h), _NEAREST)
            return picture, ids, (0, 0)
        # only the part that survives the crop is resampled: the box is given in pixels of the source
        take_h, take_w = min(crop_h, scaled_h), min(crop_w, scaled_w)
        top, left = (int(place[0] * (scaled_h - take_h + 1)), int(place[1] * (scaled_w - take_w + 1)))
        box = (
            left * width / scaled_w,
            top * height / scaled_h,
            (left + take_w) * width / scaled_w,
            (top + take_h) * height / scaled_h,
        )
        # rounding must not push the box out of the picture
        box = (box[0], box[1], min(box[2], float(width)), min(box[3], float(height)))
        picture = picture.resize((take_w, take_h), _BILINEAR, box=box)
        ids = ids.resize((take_w, take_h), _NEAREST, box=box)
        pad_at = (int(place[0] * (crop_h - take_h + 1)), int(place[1] * (crop_w - take_w + 1)))
        return picture, ids, pad_at


def _jitter(pixels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    if brightness == 1.0 and contrast == 1.0:
        return pixels
    pixels = pixels * brightness
    if contrast != 1.0:
        grey = float(pixels.mean())
        pixels = (pixels - grey) * contrast + grey
    return np.clip(pixels, 0.0, 255.0)


def _rotate(pixels: np.ndarray, ids: np.ndarray, angle: float, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    planes = [Image.fromarray(pixels[:, :, c]).rotate(angle, _BILINEAR, fillcolor=float(colour[c])) for c in range(3)]
    turned = Image.fromarray(ids).rotate(angle, _NEAREST, fillcolor=VOID)
    return np.stack([np.asarray(plane) for plane in planes], axis=-1), np.asarray(turned)


class Pipeline:
    """An augmentation pipeline that is called as albumentations' are: ``pipeline(image=, mask=)`` gives a dict of both.

    Where the pipeline has ``set_random_seed``, as ``albumentations.Compose`` has, it is seeded anew for every sample:
    results depend neither on loader processes nor on what was loaded before. Normalisation follows it.

    Args:
        pipeline: takes and gives image, uint8 [H, W, 3] RGB, and mask, uint8 [H, W] with 255 for void: let geometric
            transforms fill masks with 255 (``fill_mask=255``). All samples of a batch have to come out equally large.
    """

    def __init__(self, pipeline: Callable[..., Any]) -> None:
        self.pipeline = pipeline

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.label is None:
            raise ValueError(f"{sample.path}: no label: training needs one")
        seed = int(rng.integers(2**31))
        set_seed = getattr(self.pipeline, "set_random_seed", None)
        if set_seed is not None:
            set_seed(seed)
        found = self.pipeline(image=sample.image, mask=sample.label)
        for name, shape in (("image", "[H, W, 3]"), ("mask", "[H, W]")):
            value = found.get(name) if isinstance(found, dict) else None
            right = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == shape.count(",") + 1
            if not right:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                raise ValueError(
                    f"transform: {name}: expected uint8 {shape} as the pipeline was given it (neither normalised nor a "
                    f"tensor), got {got}"
                )
        image, label = found["image"], found["mask"]
        if image.shape != (*label.shape, 3) or min(label.shape) < 32:
            raise ValueError(
                f"transform: image: expected [H, W, 3] of at least 32x32 and a mask of that size, got "
                f"{list(image.shape)} and {list(label.shape)}"
            )
        return _pack(normalise(image), label, sample)


@dataclass(frozen=True)
class Preparation:
    """Input for evaluation: optional resize by `input_scale`, then normalisation; labels keep their own size.

    The arithmetic is that of `liteseg.predict`: bilinear (half-pixel centres, no antialiasing) to
    round(H * scale) x round(W * scale).
    """

    input_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.input_scale > 0.0:
            raise ValueError(f"input_scale: expected a number above 0, got {self.input_scale}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if self.input_scale == 1.0:
            return _pack(normalise(sample.image), sample.label, sample)
        height, width = sample.image.shape[:2]
        size = [max(1, round(height * self.input_scale)), max(1, round(width * self.input_scale))]
        pixels = torch.from_numpy(sample.image.astype(np.float32)).permute(2, 0, 1).unsqueeze(0)
        resized = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return _pack(normalise(resized[0].permute(1, 2, 0).numpy()), sample.label, sample)
