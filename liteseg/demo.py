"""One real picture through the fused model, compared with plain PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import liteseg_kernels as lk
from liteseg.data import MEAN, STD
from liteseg.image_io import add_legend, overlay, write_image, write_labels
from liteseg.models import Network
from liteseg.palette import palette_for
from liteseg.predict import input_size, predict
from liteseg.reading import SampleRange, read_image
from liteseg_kernels import functional as F
from liteseg_kernels.eval_view import eval_view

__all__ = ["Comparison", "compare", "demo"]

# drawn by tests/data/draw_street.py, under the licence of the code
STREET = Path(__file__).resolve().parent / "assets" / "drawn_street.jpg"
WARM_UP = 3


@dataclass(frozen=True)
class Comparison:
    """The fused model against plain PyTorch on one picture.

    Attributes:
        equal: share of pixels with the same label, 0..1.
        fused, plain: median seconds for normalised input -> label map.
        rounds: timed runs of each, taken in turns.
        input_size: (H, W) the network ran at.
        device, dtype, threads: where and how.
    """

    equal: float
    fused: float
    plain: float
    rounds: int
    input_size: tuple[int, int]
    device: str
    dtype: str
    threads: int

    def __str__(self) -> str:
        where = f"{self.threads} threads" if self.device == "cpu" else self.device
        return (
            f"fused against plain PyTorch: {100 * self.equal:.3f} % of the pixels equal, "
            f"{self.plain / self.fused:.2f} times as fast "
            f"(network and labels, medians of {self.rounds} runs in turns: {1e3 * self.fused:.1f} and "
            f"{1e3 * self.plain:.1f} ms; {self.input_size[0]}x{self.input_size[1]}, {self.dtype}, {where})"
        )


def _seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(model: Network, fused: nn.Module, image: np.ndarray, *, scale: float, rounds: int) -> Comparison:
    """Labels and times of a fused model and of the model it was made from, run as plain PyTorch.

    Both start from the same normalised input and end with the label map at the picture's size. Plain PyTorch is
    ``lk.to_reference(model)``, full-size logits from ``interpolate``, and ``argmax``. After a warm-up the two are timed
    in turns, so that what else the machine does meets both.

    Args:
        model: on its device, in its dtype.
        fused: ``lk.fuse(model)``.
        image: uint8 [H, W, 3] RGB.
        scale: input scale.
        rounds: timed runs of each.
    """
    plain: Any = eval_view(lk.to_reference(model))
    fused = eval_view(fused)
    parameter = next(model.parameters())
    size = (image.shape[0], image.shape[1])
    at = input_size(size, scale)
    pixels = torch.from_numpy(image).to(parameter.device)
    x = F.preprocess(pixels, None if at == size else at, mean=MEAN, std=STD, dtype=parameter.dtype)

    def run_fused() -> torch.Tensor:
        return lk.runtime.labels(fused, x, size)

    def run_plain() -> torch.Tensor:
        logits = plain.low_resolution_logits(x)
        return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=True).argmax(1)

    with torch.inference_mode():
        equal = (run_fused() == run_plain()).double().mean().item()
        for _ in range(WARM_UP):
            run_fused()
            run_plain()
        times: dict[str, list[float]] = {"fused": [], "plain": []}
        for _ in range(rounds):
            times["fused"].append(_seconds(run_fused, x.device))
            times["plain"].append(_seconds(run_plain, x.device))
    return Comparison(
        equal=equal,
        fused=statistics.median(times["fused"]),
        plain=statistics.median(times["plain"]),
        rounds=rounds,
        input_size=at,
        device=str(x.device),
        dtype=str(x.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def demo(
    model: Network,
    *,
    image: Path | None,
    out: Path,
    dtype: str = "float32",
    scale: float | None = None,
    value_range: SampleRange = None,
    rounds: int = 10,
) -> Comparison:
    """Segments one picture with the fused model, writes labels and overlay, prints their paths and the comparison.

    Args:
        model: float32, eval mode, on its device.
        image: a picture, or None for the drawn street in the package.
        out: output folder.
        dtype: "float32", "float16" or "bfloat16".
        scale: input scale; the model's by default.
        value_range: of a picture with more than 8 bits a sample; read off it by default.
        rounds: timed runs of each of the two.
    """
    path = STREET if image is None else image
    pixels = read_image(path, value_range)
    scale = model.config.input_scale if scale is None else scale
    fused = lk.fuse(model).to(getattr(torch, dtype))
    model = model.to(getattr(torch, dtype))
    labels = predict(fused, pixels, scale=scale)
    palette = palette_for(model.config.class_names, model.config.num_classes)
    painted = overlay(pixels, labels, palette)
    if model.config.class_names is not None:
        painted = add_legend(painted, palette, model.config.class_names)
    labels_path, overlay_path = (out / f"{path.stem}_{what}.png" for what in ("labels", "overlay"))
    write_labels(labels_path, labels, palette)
    write_image(overlay_path, painted)
    result = compare(model, fused, pixels, scale=scale, rounds=rounds)
    print(f"picture: {overlay_path}")
    print(f"labels:  {labels_path}")
    print(result)
    return result
