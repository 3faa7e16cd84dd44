"""The authors' checkpoint layout, both ways.

Their files are bare state dicts of the whole network. Modules are mapped by name, never by position: in their DASPP
branches the second convolution is registered before the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from liteseg.atomic import atomic_path
from liteseg.models.encoders import ENCODERS
from liteseg.models.files import check_folder
from liteseg.models.imagenet import module_map as mobilenet_module_map
from liteseg.models.liteseg import LiteSeg, ModelConfig

_DARKNET_LAYERS = (1, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23)
_LAST_LOW_LAYER = 7
_SHUFFLENET_UNITS = {2: 4, 3: 8, 4: 4}
_PREFIXES = {"mobilenetv2": "mobile_features.", "shufflenet": "shuffle_features.", "darknet19": "resnet_features."}
# parameters of the ImageNet classifiers, which are in the files but never run
DEAD_HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    "mobilenetv2": {
        "mobile_features.classifier.1.weight": (1000, 1280),
        "mobile_features.classifier.1.bias": (1000,),
    },
    "shufflenet": {
        "shuffle_features.module.fc.weight": (1000, 1536),
        "shuffle_features.module.fc.bias": (1000,),
    },
    "darknet19": {},
}
_RATES = (3, 6, 9)
_COUNTER = "num_batches_tracked"


def detect_backbone(state: Mapping[str, torch.Tensor]) -> str | None:
    """Backbone of a state dict in the authors' layout, None if it is not one."""
    for backbone, prefix in _PREFIXES.items():
        if any(key.startswith(prefix) for key in state):
            return backbone
    return None


def _is_separable(state: Mapping[str, torch.Tensor]) -> bool:
    # the fusion after the branches: a plain convolution there means that all of head and decoder is standard
    return "conv1.weight" not in state


def detect_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """ModelConfig fields (less the name) of a state dict in the authors' layout, None if it is not one."""
    backbone = detect_backbone(state)
    if backbone is None:
        return None
    config: dict[str, Any] = {"backbone": backbone, "separable": _is_separable(state)}
    classifier = state.get("last_conv.6.weight")
    if classifier is not None:
        config["num_classes"] = classifier.shape[0]
    return config


def _backbone_modules(backbone: str) -> dict[str, str]:
    if backbone == "mobilenetv2":
        pairs = mobilenet_module_map(torchvision=False)
        return {f"backbone.{ours}": f"mobile_features.{theirs}" for theirs, ours in pairs.items()}
    if backbone == "darknet19":
        pairs = {}
        for number in _DARKNET_LAYERS:
            ours = f"backbone.{'low' if number <= _LAST_LOW_LAYER else 'high'}.{number}"
            theirs = f"resnet_features.layers.{number}_convbatch.layers"
            pairs[f"{ours}.conv"] = f"{theirs}.0"
            pairs[f"{ours}.norm"] = f"{theirs}.1"
        return pairs
    pairs = {"backbone.stem.conv": "shuffle_features.module.conv1"}
    for stage, units in _SHUFFLENET_UNITS.items():
        for unit in range(units):
            ours = f"backbone.stage{stage}.{unit}"
            theirs = f"shuffle_features.module.stage{stage}.ShuffleUnit_Stage{stage}_{unit}"
            pairs[f"{ours}.compress.conv"] = f"{theirs}.g_conv_1x1_compress.conv1x1"
            pairs[f"{ours}.compress.norm"] = f"{theirs}.g_conv_1x1_compress.batch_norm"
            pairs[f"{ours}.depthwise.conv"] = f"{theirs}.depthwise_conv3x3"
            pairs[f"{ours}.depthwise.norm"] = f"{theirs}.bn_after_depthwise"
            pairs[f"{ours}.expand.conv"] = f"{theirs}.g_conv_1x1_expand.conv1x1"
            pairs[f"{ours}.expand.norm"] = f"{theirs}.g_conv_1x1_expand.batch_norm"
    return pairs


def module_map(backbone: str, *, separable: bool) -> dict[str, str]:
    """The authors' module paths by ours, for every module with parameters."""
    pairs = _backbone_modules(backbone)
    # ours, their convolution, their normalisation
    blocks = [("daspp.point", "aspp1.atrous_convolution", "aspp1.bn")]
    for index in range(len(_RATES)):
        theirs = f"aspp{index + 2}"
        blocks.append((f"daspp.atrous.{index}", f"{theirs}.atrous_convolution", f"{theirs}.bn"))
        blocks.append((f"daspp.deep.{index}", f"{theirs}.conv1", f"{theirs}.bn1"))
    blocks.append(("daspp.project", "conv1", "bn1"))
    if backbone != "mobilenetv2":
        blocks.append(("reduce", "conv2", "bn2"))
    blocks.append(("decoder.0", "last_conv.0", "last_conv.1"))
    blocks.append(("decoder.1", "last_conv.3", "last_conv.4"))
    for ours, conv, norm in blocks:
        if separable:
            pairs[f"{ours}.depthwise"] = f"{conv}.conv1"
            pairs[f"{ours}.pointwise"] = f"{conv}.pointwise"
        else:
            pairs[f"{ours}.conv"] = conv
        pairs[f"{ours}.norm"] = norm
    pairs["daspp.pool.conv"] = "global_avg_pool.1"
    pairs["daspp.pool.norm"] = "global_avg_pool.2"
    pairs["classifier"] = "last_conv.6"
    return pairs


def _check_structure(config: ModelConfig, what: str) -> None:
    for field in ("deeper", "short_residual", "long_residual"):
        if not getattr(config, field):
            raise ValueError(f"{what}: {field}: expected True (the authors' layout has no other), got False")
    if len(config.rates) != len(_RATES):
        raise ValueError(
            f"{what}: rates: expected {len(_RATES)} (the authors' layout has no other), got {config.rates}"
        )


def from_official(state: Mapping[str, torch.Tensor], config: ModelConfig, origin: str) -> dict[str, torch.Tensor]:
    """A state dict in the authors' layout with our keys, ready for a model of `config`.

    The dead ImageNet classifier is left out and missing batch counters become 0. Any other key without a counterpart
    keeps its name, so that the strict check that follows reports it.
    """
    backbone = detect_backbone(state)
    if backbone != config.backbone:
        raise ValueError(f"{origin}: backbone: expected weights for {config.backbone}, got {backbone}")
    separable = _is_separable(state)
    if separable != config.separable:
        raise ValueError(
            f"{origin}: expected {'separable' if config.separable else 'standard'} convolutions in head and decoder, "
            f"got {'separable' if separable else 'standard'} ones: they need a model with separable={separable}"
        )
    _check_structure(config, origin)
    ours_by_theirs = {theirs: ours for ours, theirs in module_map(backbone, separable=separable).items()}
    return _renamed({k: v for k, v in state.items() if k not in DEAD_HEADS[backbone]}, ours_by_theirs)


def backbone_from_official(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone of a state dict in the authors' layout with our keys, whatever its head is."""
    backbone = detect_backbone(state)
    if backbone is None:
        raise ValueError("backbone_from_official: state: expected the authors' layout, got another")
    prefix, dead = _PREFIXES[backbone], DEAD_HEADS[backbone]
    own = {key: value for key, value in state.items() if key.startswith(prefix) and key not in dead}
    return _renamed(own, {theirs: ours for ours, theirs in _backbone_modules(backbone).items()})


def _renamed(state: Mapping[str, torch.Tensor], ours_by_theirs: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The state dict with our names where there is one; missing batch counters become 0."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{ours_by_theirs[module]}.{leaf}" if module in ours_by_theirs else key] = value
    # files saved before torch 0.4.1 have no batch counters
    for key in [key for key in renamed if key.endswith(".running_var")]:
        renamed.setdefault(key.removesuffix("running_var") + _COUNTER, torch.tensor(0))
    return renamed


def to_official(model: LiteSeg) -> dict[str, torch.Tensor]:
    """The model's weights in the authors' layout; the dead ImageNet classifier they also have is filled with zeros.

    Raises:
        ValueError: the model differs from the authors' networks in more than its classes and separability.
    """
    if not isinstance(model, LiteSeg):
        raise TypeError(f"export_official: model: expected a LiteSeg, got {type(model).__name__}")
    config = model.config
    if config.backbone not in DEAD_HEADS:
        raise ValueError(
            f"export_official: model: expected a backbone of the authors, one of {', '.join(DEAD_HEADS)}, "
            f"got {config.backbone}"
        )
    _check_structure(config, "export_official")
    published = {"filters": 96, "rates": _RATES, "output_stride": ENCODERS[config.backbone].output_strides[0]}
    for field, expected in published.items():
        if getattr(config, field) != expected:
            raise ValueError(
                f"export_official: {field}: expected {expected} (fixed in the authors' code), "
                f"got {getattr(config, field)}"
            )
    pairs = module_map(config.backbone, separable=config.separable)
    state = {}
    for key, value in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if module not in pairs:
            raise ValueError(f"export_official: model: expected the layers of a {config.name}, got {key}")
        state[f"{pairs[module]}.{leaf}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    for key, shape in DEAD_HEADS[config.backbone].items():
        state[key] = torch.zeros(shape)
    return state


def export_official(model: LiteSeg, path: str | os.PathLike[str]) -> None:
    """Write the model's weights as a ``.pth`` that the authors' code loads (``net.load_state_dict(torch.load(path))``).

    See :func:`to_official` for what can be exported. The file appears whole or not at all.
    """
    check_folder(path)
    state = to_official(model)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
