"""ImageNet weights for the MobileNetV2 backbone, in torchvision's and in the flat key layout."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from liteseg.models.encoders import MobileNetV2, TimmBackbone
from liteseg.models.files import check_state, read_checkpoint
from liteseg.models.liteseg import LiteSeg

# positions inside `features.<i>.conv` -> our submodules, for blocks without and with expansion
_FLAT = (
    {"0": "depthwise.conv", "1": "depthwise.norm", "3": "project.conv", "4": "project.norm"},
    {
        "0": "expand.conv",
        "1": "expand.norm",
        "3": "depthwise.conv",
        "4": "depthwise.norm",
        "6": "project.conv",
        "7": "project.norm",
    },
)
_TORCHVISION = (
    {"0.0": "depthwise.conv", "0.1": "depthwise.norm", "1": "project.conv", "2": "project.norm"},
    {
        "0.0": "expand.conv",
        "0.1": "expand.norm",
        "1.0": "depthwise.conv",
        "1.1": "depthwise.norm",
        "2": "project.conv",
        "3": "project.norm",
    },
)
_NUM_BLOCKS = 17


def module_map(*, torchvision: bool) -> dict[str, str]:
    """Module paths of :class:`MobileNetV2` by their names in the other layout (``features.*``)."""
    layout = _TORCHVISION if torchvision else _FLAT
    pairs = {"features.0.0": "stem.conv", "features.0.1": "stem.norm"}
    for index in range(_NUM_BLOCKS):
        # only the first block has no expansion
        for theirs, ours in layout[index > 0].items():
            pairs[f"features.{index + 1}.conv.{theirs}"] = f"blocks.{index}.{ours}"
    pairs[f"features.{_NUM_BLOCKS + 1}.0"] = "last.conv"
    pairs[f"features.{_NUM_BLOCKS + 1}.1"] = "last.norm"
    return pairs


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ``features.*`` state dict with our key names; the ImageNet classifier is left out, unknown keys are kept."""
    torchvision = "features.1.conv.0.0.weight" in state
    pairs = module_map(torchvision=torchvision)
    converted = {}
    for key, value in state.items():
        if key in ("classifier.1.weight", "classifier.1.bias"):
            continue
        module, _, leaf = key.rpartition(".")
        converted[f"{pairs[module]}.{leaf}" if module in pairs else key] = value
    return converted


def adapt_stem(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The first convolution's weight [C, 3, k, k] for input of other channels, [C, channels, k, k].

    As timm does it: one channel takes the sum over the colours; other numbers take the colours' weights in turn, scaled
    by 3 / channels.
    """
    if channels == weight.shape[1]:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    turns = torch.arange(channels) % weight.shape[1]
    return weight[:, turns] * (weight.shape[1] / channels)


def load_backbone(model: LiteSeg, path: str | os.PathLike[str]) -> None:
    """Copy ImageNet weights into the model's MobileNetV2 or timm backbone: every key and shape is checked first.

    Args:
        path: ``.safetensors``, ``.pth`` or ``.pth.tar``, with torchvision's key names (``features.1.conv.0.0.weight``)
            or the flat ones (``features.1.conv.0.weight``); the classifier in it is ignored. Where the model's input
            has other channels than RGB, the first convolution's weights are adapted (:func:`adapt_stem`). For a timm
            backbone timm itself reads the file, ``.safetensors`` or ``.pth`` of the whole model, and adapts it.
    """
    if isinstance(model.backbone, TimmBackbone):
        model.backbone.load_pretrained(path)
        return
    if not isinstance(model.backbone, MobileNetV2):
        raise ValueError(f"backbone_weights: expected a mobilenetv2 or timm model, got {model.config.backbone}")
    state = read_checkpoint(path).state
    if not any(key.startswith("features.") for key in state):
        raise ValueError(
            f"{path}: expected ImageNet MobileNetV2 keys (features.0.0.weight, ...), got {next(iter(state))}"
        )
    converted = convert(state)
    stem = converted.get("stem.conv.weight")
    if stem is not None and stem.dim() == 4 and stem.shape[1] == 3:
        converted["stem.conv.weight"] = adapt_stem(stem, model.config.in_channels)
    # files written before torch 0.4.1 have no batch counters
    for key, value in model.backbone.state_dict().items():
        if key.endswith("num_batches_tracked"):
            converted.setdefault(key, torch.zeros_like(value))
    check_state(model.backbone, converted, str(path))
    model.backbone.load_state_dict(converted)
