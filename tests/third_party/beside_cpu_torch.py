"""torchvision beside a torch without CUDA: the package index has it built for CUDA alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

# what its Python part describes whether or not its library could be loaded
_DESCRIBED = ("torchvision::nms", "torchvision::qnms")


def torchvision_imports() -> str | None:
    """Import torchvision, its missing ops defined (never called) where its library cannot be loaded; or say why not.

    timm and segmentation_models.pytorch import it, so this comes before them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    try:
        importlib.import_module("torchvision")
        return None
    except RuntimeError as missing:
        if "does not exist" not in str(missing):
            return str(missing)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for op in _DESCRIBED:
        torch.library.define(op, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    return None
