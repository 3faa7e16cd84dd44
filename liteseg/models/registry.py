"""Model names and the function that makes models from them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any

from liteseg.models import official
from liteseg.models.checkpoint import (
    Network,
    NetworkConfig,
    build,
    config_class,
    config_from_metadata,
    load_state,
    resolve_weights,
)
from liteseg.models.encoders import ENCODERS
from liteseg.models.files import Checkpoint, read_checkpoint
from liteseg.models.imagenet import load_backbone
from liteseg.models.liteseg import LiteSeg, ModelConfig
from liteseg.models.peers import PEERS
from liteseg.models.peers.espnet import detect_config as detect_espnet

_DEFAULT_BACKBONE = "mobilenetv2"
# these may differ from what a weights file says: two describe the use of a model, the third changes no weight's shape
_FREE = ("class_names", "input_scale", "output_stride")


def _switches(config: type[Any]) -> tuple[str, ...]:
    """What create_model takes besides name and weights; name and backbone are fixed by the name."""
    return tuple(f.name for f in dataclasses.fields(config) if f.name not in ("name", "backbone"))


# of any model
_SWITCHES = tuple(dict.fromkeys(_switches(ModelConfig) + sum((_switches(p.config_class) for p in PEERS.values()), ())))


def _presets() -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = {}
    for backbone, encoder in ENCODERS.items():
        presets[f"liteseg_{backbone}"] = {"backbone": backbone, "output_stride": encoder.output_strides[0]}
    for backbone in ENCODERS:
        # the first row of Table I, a minimal DeepLabv3+: plain ASPP and dense convolutions
        presets[f"deeplabv3plus_{backbone}"] = {
            "backbone": backbone,
            "output_stride": 32,
            "separable": False,
            "deeper": False,
            "short_residual": False,
        }
    for peer in PEERS:
        presets[peer] = {}
    return presets


_PRESETS = _presets()


def list_models() -> list[str]:
    """Names that :func:`create_model` takes."""
    return list(_PRESETS)


def _suggest(given: Any, allowed: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(str(given), allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or name not in _PRESETS:
        raise ValueError(
            f"create_model: name: expected one of {', '.join(_PRESETS)}, got {name!r}{_suggest(name, list(_PRESETS))}"
        )
    return name


def _make_config(fields: dict[str, Any], given: dict[str, Any]) -> NetworkConfig:
    """The configuration of the model that `fields` names, with what was given on top."""
    name = fields["name"]
    kind = config_class(name)
    for switch in given:
        if switch not in _switches(kind):
            allowed = ", ".join(_switches(kind))
            raise ValueError(f"create_model: {switch}: expected none, {name} takes {allowed}; got {given[switch]!r}")
    return kind(**{**_PRESETS[name], **fields, **given})


def _config_for_file(
    name: str | None, given: dict[str, Any], checkpoint: Checkpoint, origin: str, skip_classifier: bool
) -> NetworkConfig:
    """The configuration a weights file asks for, with what was given on top; ValueError where the two contradict."""
    stored: dict[str, Any] = {}
    if checkpoint.metadata is not None:
        stored = dataclasses.asdict(config_from_metadata(checkpoint.metadata, origin))
    else:
        # a bare state dict: the authors' layout says what it is, ours needs the arguments
        detected = official.detect_config(checkpoint.state)
        if detected is not None:
            stored = {"name": f"liteseg_{detected['backbone']}", **detected}
        else:
            stored = detect_espnet(checkpoint.state) or {}
    if skip_classifier:
        # the file's classes are not wanted
        for field in ("num_classes", "class_names", "void_output"):
            stored.pop(field, None)
    expected = stored.setdefault("name", name or f"liteseg_{_DEFAULT_BACKBONE}")
    if name is not None and name != expected:
        raise ValueError(f"create_model: name: expected {expected!r} for the weights in {origin}, got {name!r}")
    _check_name(expected)
    for field, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if field in stored and field not in _FREE and stored[field] != value:
            raise ValueError(
                f"create_model: {field}: expected {stored[field]!r} for the weights in {origin}, got {value!r}"
            )
    return _make_config(stored, given)


def create_model(
    name: str | None = None,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    backbone_weights: str | os.PathLike[str] | None = None,
    skip_classifier: bool = False,
    **switches: Any,
) -> Network:
    """Make a model by name, or rebuild one from a weights file.

    Args:
        name: one of :func:`list_models`; may be left out when `weights` says it.
        num_classes: channels of the logits; 19 unless the weights say otherwise.
        weights: None, a bundled name (:func:`list_weights`), or the path of a ``.safetensors``/``.pth``/``.pt`` file,
            the authors' official ``.pth`` and ESPNet's published weights included. Our own files carry the
            configuration.
        backbone_weights: path of ImageNet MobileNetV2 weights (torchvision or flat key names).
        skip_classifier: take everything but the last convolution from `weights`, for another set of classes.
        **switches: ``class_names, input_scale``, for LiteSeg ``in_channels, output_stride, separable, deeper,
            short_residual, long_residual, filters, rates`` (see :class:`ModelConfig`), for ESPNet ``p, q, variant,
            void_output, normalisation`` (see :class:`ESPNetConfig`); None means the default. ``output_stride`` may
            differ from what `weights` were trained with: it changes no weight's shape. MobileNetV2's and ShuffleNet's
            features keep their meaning and are sampled more or less densely; Darknet19's meet other paddings too. The
            scores change: train on from there. Other ``in_channels`` than those of `weights` are refused, and
            `backbone_weights` adapted to them.

    Raises:
        ValueError: unknown name or switch, a value that is not allowed, or one that contradicts `weights`.
    """
    if name is not None:
        _check_name(name)
    for switch in switches:
        if switch not in _SWITCHES:
            allowed = ("backbone_weights", "skip_classifier", *_SWITCHES)
            raise ValueError(
                f"create_model: unknown switch {switch!r}, expected one of {', '.join(allowed)}"
                f"{_suggest(switch, allowed)}"
            )
    given = {key: value for key, value in {"num_classes": num_classes, **switches}.items() if value is not None}
    if weights is None:
        known = _check_name(name)
        model = build(_make_config({"name": known}, given))
    else:
        backbone = _PRESETS[name].get("backbone", name) if name else _DEFAULT_BACKBONE
        path = resolve_weights(weights, backbone)
        checkpoint = read_checkpoint(path)
        model = build(_config_for_file(name, given, checkpoint, str(path), skip_classifier))
        load_state(model, checkpoint.state, str(path), skip_classifier=skip_classifier)
    if backbone_weights is not None:
        if not isinstance(model, LiteSeg):
            raise ValueError(f"create_model: backbone_weights: expected none, {model.config.name} has no backbone")
        load_backbone(model, backbone_weights)
    return model
