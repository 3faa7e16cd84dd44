"""Reading and writing weights: our safetensors with the model's configuration inside, and foreign state dicts."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from liteseg.atomic import atomic_path
from liteseg.models import official
from liteseg.models.files import METADATA_KEY, check_folder, check_state, read_checkpoint, unwrap
from liteseg.models.int8 import INT8_KEY, int8_blocks, put_int8_blocks
from liteseg.models.layout import classes_in
from liteseg.models.liteseg import LiteSeg, ModelConfig
from liteseg.models.peers import PEERS, Peer, PeerConfig

# what this package makes
Network = LiteSeg | Peer
NetworkConfig = ModelConfig | PeerConfig

# what of a weights file is taken
WeightsMode = Literal["all", "all-but-classifier", "backbone"]
# what to do about weights for another number of classes
OTHER_CLASSES = (
    'take all but the last layer from the file with weights_mode="all-but-classifier", or the backbone alone with '
    'weights_mode="backbone" (liteseg train: --weights-mode)'
)

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_COUNTER = "num_batches_tracked"
_BACKBONE = "backbone."


def _folder() -> Path:
    return Path(str(importlib.resources.files("liteseg").joinpath("weights")))


def list_weights() -> list[str]:
    """Names of the bundled weights, as ``create_model(weights=...)`` takes them."""
    return sorted(file.stem for file in _folder().glob("*.safetensors"))


def resolve_weights(weights: str | os.PathLike[str], backbone: str) -> Path:
    """Path of a weights file given as a path or as a bundled name.

    A name is a string without folder or suffix; ``"camvid"`` stands for ``"camvid_<backbone>"``.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: expected a bundled name or a path, got {type(weights).__name__}")
    path = Path(weights)
    if path.is_file():
        return path
    bundled = list_weights()
    for name in (str(weights), f"{weights}_{backbone}"):
        if name in bundled:
            return _folder() / f"{name}.safetensors"
    # behind the names: a data set's folder may have that of its weights
    if path.exists():
        raise ValueError(f"weights: expected a file, got the folder {path}")
    known = ", ".join(bundled) or "none"
    others = [name for name in bundled if name.startswith(f"{weights}_")]
    if others:
        raise ValueError(
            f"weights: expected weights of {backbone} (of {weights} there is only {', '.join(others)}) or the path of "
            f"an existing file, got {str(weights)!r}"
        )
    raise ValueError(
        f"weights: expected a bundled name ({known}) or the path of an existing file, got {str(weights)!r}"
    )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The configuration metadata of one of our files (fields of ModelConfig, mean, std, ...), None if it has none.

    That of a trainer's checkpoint made by older versions may lack fields.
    """
    return read_checkpoint(path).metadata


def config_class(name: Any) -> type[ModelConfig] | type[PeerConfig]:
    """The class of the configuration of a model of this name."""
    return PEERS[name].config_class if isinstance(name, str) and name in PEERS else ModelConfig


def build(config: NetworkConfig) -> Network:
    """A new model of this configuration."""
    return LiteSeg(config) if isinstance(config, ModelConfig) else PEERS[config.name](config)


def config_from_metadata(metadata: Mapping[str, Any], origin: str) -> NetworkConfig:
    """The configuration in the metadata of one of our files."""
    kind = config_class(metadata.get("name"))
    fields = {field.name for field in dataclasses.fields(kind)}
    try:
        return kind(**{key: value for key, value in metadata.items() if key in fields})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: the model configuration in the file is not usable: {error}") from error


def check_mode(mode: Any, caller: str) -> None:
    """ValueError unless `mode` is a WeightsMode."""
    if mode not in get_args(WeightsMode):
        raise ValueError(f"{caller}: weights_mode: expected one of {', '.join(get_args(WeightsMode))}, got {mode!r}")


def _check_model(model: Any, caller: str) -> None:
    if not isinstance(model, (LiteSeg, Peer)):
        raise TypeError(f"{caller}: model: expected a LiteSeg or a peer network, got {type(model).__name__}")


def load_state(
    model: Network, state: Mapping[str, torch.Tensor], origin: str, *, weights_mode: WeightsMode = "all"
) -> None:
    """Copy a state dict in our or the authors' layout into the model: everything, or nothing on ValueError."""
    _check_model(model, "load_weights")
    check_mode(weights_mode, "load_weights")
    own = dict(state)
    left: tuple[str, ...] = ()
    if weights_mode == "backbone":
        if not isinstance(model, LiteSeg):
            raise ValueError(f"{origin}: weights_mode: expected another than backbone, {model.config.name} has none")
        if official.detect_backbone(own) is not None:
            own = official.backbone_from_official(own)
        own = {key: value for key, value in own.items() if key.startswith(_BACKBONE)}
        left = tuple(f"{name}." for name, _ in model.named_children() if f"{name}." != _BACKBONE)
    elif isinstance(model, LiteSeg) and official.detect_backbone(own) is not None:
        own = official.from_official(own, model.config, origin)
    if isinstance(model, Peer) and not any(key.endswith(_COUNTER) for key in own):
        # files written before torch 0.4.1 have no batch counters
        counters = {key: torch.zeros_like(value) for key, value in model.state_dict().items() if key.endswith(_COUNTER)}
        own.update(counters)
    if weights_mode == "all-but-classifier":
        left = model.class_prefixes if isinstance(model, Peer) else ("classifier.",)
        own = {key: value for key, value in own.items() if not key.startswith(left)}
    elif weights_mode == "all":
        count = classes_in(own, model.config.name)
        if count is not None and count != model.config.num_classes:
            raise ValueError(
                f"{origin}: num_classes: expected {model.config.num_classes} classes, got {count} in the file; "
                f"make the model with that many, or {OTHER_CLASSES}"
            )
    check_state(model, own, origin, optional=left)
    model.load_state_dict(own, strict=not left)


def load_weights(
    model: Network, path: str | os.PathLike[str] | Mapping[str, Any], *, weights_mode: WeightsMode = "all"
) -> None:
    """Copy weights into `model`, strictly: every key and shape must match, otherwise ValueError and nothing is copied.

    Args:
        path: a ``.safetensors`` or ``.pth``/``.pt``/``.ckpt`` file in our or the authors' key layout, a bundled name,
            or a state dict. What wrappers put around and in front is taken off: containers ``ema``, ``state_dict``,
            ``model_state_dict``, ``model``, ``net``, and prefixes ``module.``, ``model.``, ``net.``, ``_orig_mod.``.
        weights_mode: "all"; "all-but-classifier" leaves the model's own last layer alone (for weights with another
            number of classes); "backbone" everything but the backbone.

    Only keys and shapes are compared, so weights may go to another output stride or other rates than they came from.
    """
    if isinstance(path, Mapping):
        load_state(model, unwrap(path, "load_weights"), "load_weights", weights_mode=weights_mode)
        return
    _check_model(model, "load_weights")
    file = resolve_weights(path, model.config.backbone if isinstance(model, LiteSeg) else model.config.name)
    load_state(model, read_checkpoint(file).state, str(file), weights_mode=weights_mode)


def _stored(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        cast = value.to(dtype)
        # a running variance can be beyond float16's range: such a tensor keeps its own type
        if torch.isfinite(cast).all() or not torch.isfinite(value).all():
            value = cast
    # a copy, so that tensors that share memory (or are views) can be written
    return value.clone(memory_format=torch.contiguous_format)


def save_weights(
    model: Network,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the model's weights and configuration as safetensors, so that ``create_model(weights=path)`` rebuilds it.

    Args:
        dtype: store floating tensors as this type (``torch.float16`` halves the file), None keeps the model's.
        metadata: more JSON values to store beside the configuration, for example ``{"provenance": "..."}``; ``mean``
            and ``std`` default to the ImageNet values that :mod:`liteseg.data` uses.

    The file appears whole or not at all.
    """
    _check_model(model, "save_weights")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"save_weights: dtype: expected a floating point torch.dtype or None, got {dtype!r}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"save_weights: path: expected a name ending in .safetensors, got {str(path)!r}")
    check_folder(path)
    quantised = int8_blocks(model)
    with torch.device("meta"):
        plain = build(model.config)
        put_int8_blocks(plain, quantised, "save_weights: model")
    check_state(plain, model.state_dict(), "save_weights: model")
    content = {"mean": _MEAN, "std": _STD, **(metadata or {}), **model.config.to_dict()}
    if quantised:
        content[INT8_KEY] = quantised
    # of a block in int8 nothing may lose digits
    exact = tuple(f"{name}." for name in quantised)
    state = {
        key: _stored(value, None if key.startswith(exact or "\0") else dtype)
        for key, value in model.state_dict().items()
    }
    header = {METADATA_KEY: json.dumps(content)}
    with atomic_path(path) as temporary:
        save_file(state, temporary, header)
