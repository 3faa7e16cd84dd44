"""Models as the network files that the C library runs (`liteseg export --format plan`), and such files against them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import liteseg_kernels as lk
from liteseg.data import MEAN, STD
from liteseg.errors import UserError
from liteseg.predict import MIN_SIZE, evaluating, predict_at
from liteseg_kernels import c_library
from liteseg_kernels._version import __version__
from liteseg_kernels.plan import PlannedModule
from liteseg_kernels.plan import file as plan_file

__all__ = ["compare", "need_library", "pictures", "write"]


def need_library() -> None:
    """UserError where the C library, which checks the file, is not there."""
    try:
        c_library.library()
    except OSError as error:
        raise UserError(
            f"export: format: plan: expected libliteseg.so, which comes with the compiled CPU kernels "
            f"(python -m liteseg_kernels.info), got none: {error}"
        ) from None


def write(model: nn.Module, path: Path, classes: int) -> None:
    """Write the file. ValueError for a model that does not run from a plan, or not on RGB pictures."""
    channels = getattr(getattr(model, "config", None), "in_channels", 3)
    if channels != 3:
        raise ValueError(f"export: model: expected one of RGB pictures for the format plan, got {channels} channels")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        model = copy.deepcopy(model).cpu()
    fused = lk.fuse(model)
    with torch.inference_mode():
        how = lk.runtime.explain(fused, torch.zeros(1, channels, 2 * MIN_SIZE, 2 * MIN_SIZE))
    if how.plan is None or not isinstance(fused, PlannedModule):
        why = how.refused.get("plan", "it is no network of this library")
        raise ValueError(f"export: model: expected a network that runs from a plan, got one that does not: {why}")
    config = getattr(model, "config", None)
    about = plan_file.Description(
        classes=classes,
        mean=MEAN,
        std=STD,
        input_scale=float(getattr(config, "input_scale", 1.0)),
        smallest_side=MIN_SIZE,
        class_names=getattr(config, "class_names", None),
        more={"liteseg_version": __version__, "config": None if config is None else config.to_dict()},
    )
    plan_file.write(path, fused.program(), about)


def pictures(shape: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 [H, W, 3] with areas and noise: a network's labels vary on it."""
    random = np.random.default_rng(seed)
    height, width = shape
    areas = random.normal(size=(-(-height // 32), -(-width // 32), 3)).repeat(32, 0).repeat(32, 1)[:height, :width]
    return (128 + 64 * areas + 16 * random.normal(size=(height, width, 3))).clip(0, 255).astype(np.uint8)


def compare(path: Path, model: nn.Module, shapes: Sequence[tuple[int, int]]) -> list[tuple[float, float, float]]:
    """For a picture of each shape: the share of pixels with the model's label, the largest difference of the logits,
    and the largest logit."""
    found = []
    with c_library.Network(path, threads=torch.get_num_threads()) as network, evaluating(model) as ready:
        for seed, shape in enumerate(shapes):
            picture = pictures(shape, seed)
            expected = predict_at(ready, picture, output="logits")
            logits = network.logits(picture)
            equal = float((network.labels(picture) == predict_at(ready, picture)).mean())
            found.append((equal, float(np.abs(logits - expected).max()), float(np.abs(expected).max())))
    return found
