"""The paper's Fig. 2 and Fig. 3 on pictures of one's own: what the connections carry, and models side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import nn

import liteseg_kernels as lk
from liteseg.atomic import atomic_path
from liteseg.data import MEAN, STD
from liteseg.errors import UserError
from liteseg.models import LiteSeg
from liteseg.palette import Palette, colorize
from liteseg.predict import input_size, predict
from liteseg_kernels import functional as F

__all__ = ["features", "figure2", "figure3", "sheet"]

_MARGIN = 4
_CAPTION = 14


def heat(features: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Mean size of the activations of [1, C, h, w] as a picture uint8 [H, W, 3], dark to bright from least to most."""
    strength = features[0].float().abs().mean(0)
    low, high = strength.min(), strength.max()
    grey = (255 * (strength - low) / (high - low).clamp_min(1e-12)).byte().cpu().numpy()
    # nearest: what a feature map's pixel holds, and how large it is, stays visible
    picture = Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(ImageOps.colorize(picture, black="#0d0887", mid="#cc4778", white="#f0f921"))


@contextmanager
def _recorded(module: nn.Module, into: list[torch.Tensor], pick: int | None = None) -> Iterator[None]:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        into.append(output if pick is None else output[pick])

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _without_short_residual(model: LiteSeg) -> LiteSeg:
    """The same weights with the connection from the encoder's output to the head's last convolution cut."""
    cut = copy.deepcopy(model)
    project: Any = cut.daspp.project
    weight = (project.pointwise if model.config.separable else project.conv).weight
    with torch.no_grad():
        # the encoder's output comes first in the concatenation
        weight[:, : model.backbone.out_channels] = 0
    return cut


def features(model: LiteSeg, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Feature maps [1, C, h, w] of normalised input by the names of Fig. 2's panels.

    The connections are cut in the trained network: what is missing without one is what it carries. (The paper's figure
    compares networks that were trained without.)
    """
    found: dict[str, torch.Tensor] = {}
    # a plain copy: fused modules have no parts to look into
    plain: Any = lk.to_reference(model).eval()

    def look(network: LiteSeg, module: nn.Module, pick: int | None = None) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with _recorded(module, seen, pick):
            network.low_resolution_logits(x)
        return seen[-1]

    with torch.inference_mode():
        found["encoder (backbone)"] = look(plain, plain.backbone, pick=1)
        found["after DASPP"] = look(plain, plain.daspp)
        if plain.config.short_residual:
            cut = _without_short_residual(plain).eval()
            found["DASPP without short residual"] = look(cut, cut.daspp)
        found["decoder"] = look(plain, plain.decoder)
        if plain.upsample_concat is not None:
            silent = copy.deepcopy(plain)
            silent.upsample_concat.register_forward_pre_hook(lambda _, given: (given[0], torch.zeros_like(given[1])))
            found["decoder without long residual"] = look(silent, silent.decoder)
    return found


def sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path) -> None:
    """Rows of (caption, uint8 [H, W, 3]) as one picture file; all pictures take the size of the first of its row."""
    width = sum(picture.shape[1] + _MARGIN for _, picture in max(rows, key=len)) + _MARGIN
    heights = [row[0][1].shape[0] + _CAPTION + _MARGIN for row in rows]
    page = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for caption, picture in row:
            size = row[0][1].shape[:2]
            if picture.shape[:2] != size:
                resized = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST)
                picture = np.asarray(resized)
            draw.text((left, top), caption, fill="black")
            page.paste(Image.fromarray(picture), (left, top + _CAPTION))
            left += size[1] + _MARGIN
        top += height
    with atomic_path(path) as temporary:
        page.save(temporary)


def figure2(model: nn.Module, images: Sequence[np.ndarray], path: Path) -> None:
    """One row a picture: the input, then the panels of :func:`features` as heat maps.

    Raises UserError where the model is not a LiteSeg (or a DeepLabV3+ baseline of it).
    """
    if not isinstance(model, LiteSeg):
        raise UserError(f"figures: --weights: expected a LiteSeg network for figure 2, got {type(model).__name__}")
    device = next(model.parameters()).device
    rows = []
    for image in images:
        size = image.shape[:2]
        at = input_size(size, model.config.input_scale)
        pixels = torch.from_numpy(np.array(image)).to(device)
        x = F.preprocess(pixels, None if at == size else at, mean=MEAN, std=STD)
        panels = [(name, heat(value, size)) for name, value in features(model, x).items()]
        rows.append([("input", image), *panels])
    sheet(rows, path)


def figure3(
    models: dict[str, nn.Module],
    samples: Sequence[tuple[np.ndarray, np.ndarray | None]],
    path: Path,
    palette: Palette,
) -> None:
    """One row a picture: the input, the truth where there is one, the labels of each model.

    Args:
        models: by caption; they share the classes of `palette`.
        samples: pictures uint8 [H, W, 3], labels uint8 [H, W] or None.
    """
    rows = []
    for image, label in samples:
        row = [("input", image)]
        if label is not None:
            row.append(("truth", colorize(label, palette)))
        row += [(name, colorize(predict(model, image), palette)) for name, model in models.items()]
        rows.append(row)
    sheet(rows, path)
