"""Model names and the function that makes models from them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any

from liteseg.models import official
from liteseg.models.checkpoint import (
    OTHER_CLASSES,
    Network,
    NetworkConfig,
    WeightsMode,
    build,
    check_mode,
    config_class,
    config_from_metadata,
    load_state,
    resolve_weights,
)
from liteseg.models.encoders import ENCODERS, encoder_class
from liteseg.models.files import Checkpoint, read_checkpoint
from liteseg.models.imagenet import load_backbone
from liteseg.models.int8 import INT8_KEY, put_int8_blocks
from liteseg.models.layout import detect_config as detect_own
from liteseg.models.liteseg import LiteSeg, ModelConfig
from liteseg.models.peers import PEERS
from liteseg.models.peers.espnet import detect_config as detect_espnet

_DEFAULT_BACKBONE = "mobilenetv2"
# whose encoder is given beside the name
_OPEN = "liteseg"
# these may differ from what a weights file says: two describe the use of a model, the third changes no weight's shape
_FREE = ("class_names", "input_scale", "output_stride")


def _switches(config: type[Any]) -> tuple[str, ...]:
    """What create_model takes besides name and weights; name and backbone are fixed by the name."""
    return tuple(f.name for f in dataclasses.fields(config) if f.name not in ("name", "backbone"))


# of any model
_SWITCHES = tuple(dict.fromkeys(_switches(ModelConfig) + sum((_switches(p.config_class) for p in PEERS.values()), ())))


def _presets() -> dict[str, dict[str, Any]]:
    """What a name stands for, made from the encoders and peers that there are."""
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
    presets[_OPEN] = {}
    return presets


def list_models() -> list[str]:
    """Names that :func:`create_model` takes as they are; beside them it takes ``"liteseg"`` with an encoder."""
    return [name for name in _presets() if name != _OPEN]


def _named(backbone: str) -> str:
    """The name of LiteSeg on this backbone."""
    return f"liteseg_{backbone}" if backbone in ENCODERS else _OPEN


def _suggest(given: Any, allowed: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(str(given), allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or name not in _presets():
        raise ValueError(
            f"create_model: name: expected one of {', '.join(_presets())}, got {name!r}{_suggest(name, list_models())}"
        )
    return name


def _check_encoder(name: str | None, encoder: Any) -> None:
    """ValueError unless there is this encoder, and the name leaves it open."""
    if name is not None and name != _OPEN:
        raise ValueError(
            f"create_model: encoder: expected none, {name} has its own ({_OPEN!r} has not); got {encoder!r}"
        )
    if encoder_class(encoder) is None:
        raise ValueError(
            f"create_model: encoder: expected one of {', '.join(ENCODERS)}, timm/<model>, got {encoder!r}"
            f"{_suggest(encoder, list(ENCODERS))}"
        )


def _make_config(fields: dict[str, Any], given: dict[str, Any]) -> NetworkConfig:
    """The configuration of the model that `fields` names, with what was given on top."""
    name = fields["name"]
    kind = config_class(name)
    if name == _OPEN and "backbone" not in fields:
        raise ValueError(f"create_model: encoder: expected one of {', '.join(ENCODERS)}, timm/<model>, got none")
    for switch in given:
        if switch not in _switches(kind):
            allowed = ", ".join(_switches(kind))
            raise ValueError(f"create_model: {switch}: expected none, {name} takes {allowed}; got {given[switch]!r}")
    return kind(**{**_presets()[name], **fields, **given})


def _stored_config(checkpoint: Checkpoint, origin: str) -> dict[str, Any]:
    """What a weights file says of its network: fields of its configuration, the name perhaps not among them."""
    metadata = checkpoint.metadata
    if metadata is not None:
        preset = _presets().get(str(metadata.get("name")), {})
        return dataclasses.asdict(config_from_metadata({**preset, **metadata}, origin))
    # a bare state dict: its keys say what it is
    detected = official.detect_config(checkpoint.state)
    if detected is not None:
        return {"name": f"liteseg_{detected['backbone']}", **detected}
    return detect_espnet(checkpoint.state) or detect_own(checkpoint.state) or {}


def _config_for_file(
    name: str | None,
    encoder: str | None,
    given: dict[str, Any],
    checkpoint: Checkpoint,
    origin: str,
    weights_mode: WeightsMode,
) -> NetworkConfig:
    """The configuration a weights file asks for, with what was given on top; ValueError where the two contradict."""
    stored = _stored_config(checkpoint, origin)
    if encoder is not None and stored.setdefault("backbone", encoder) != encoder:
        raise ValueError(
            f"create_model: encoder: expected {stored['backbone']!r} for the weights in {origin}, got {encoder!r}"
        )
    backbone = stored.get("backbone", _DEFAULT_BACKBONE)
    if weights_mode == "backbone":
        # names of one backbone differ in what is not wanted
        stored = {"backbone": backbone} if "backbone" in stored else stored
    elif weights_mode == "all-but-classifier":
        # the file's classes are not wanted
        for field in ("num_classes", "class_names", "void_output"):
            stored.pop(field, None)
    if "name" not in stored:
        fits = name is not None and ("backbone" not in stored or _presets()[name].get("backbone") == backbone)
        stored["name"] = name if fits else _named(backbone)
    expected = stored["name"]
    if name is not None and name != expected:
        raise ValueError(f"create_model: name: expected {expected!r} for the weights in {origin}, got {name!r}")
    _check_name(expected)
    for field, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if field in stored and field not in _FREE and stored[field] != value:
            hint = f"; {OTHER_CLASSES}" if field == "num_classes" else ""
            raise ValueError(
                f"create_model: {field}: expected {stored[field]!r} for the weights in {origin}, got {value!r}{hint}"
            )
    return _make_config(stored, given)


def create_model(
    name: str | None = None,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    encoder: str | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    weights_mode: WeightsMode = "all",
    **switches: Any,
) -> Network:
    """Make a model by name, or rebuild one from a weights file.

    Args:
        name: one of :func:`list_models`, or ``"liteseg"`` with an `encoder`; may be left out when `weights` says it.
        num_classes: channels of the logits; 19 unless the weights say otherwise.
        weights: None, a bundled name (:func:`list_weights`), or the path of a ``.safetensors``, ``.pth``, ``.pt`` or
            ``.ckpt`` file, the authors' official ``.pth`` and ESPNet's published weights included. Our own files carry
            the configuration, the trainer's checkpoints too; of bare state dicts the number of classes is read off the
            last layer. See :func:`load_weights` for what may be wrapped around them.
        encoder: of ``"liteseg"``: the end of one of its other names, or ``timm/<model>`` for any timm backbone with a
            map at stride 4 (timm is installed apart, docs/extending.md). Such an encoder runs by timm's modules.
        backbone_weights: path of ImageNet MobileNetV2 weights (torchvision or flat key names); of a timm encoder the
            path of weights of timm's whole model.
        weights_mode: what is taken from `weights`: "all"; "all-but-classifier", everything but the last layer, for
            other classes; "backbone", the backbone alone, for another head too.
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
    if encoder is not None:
        _check_encoder(name, encoder)
        # what the weights say has the last word
        name = _named(encoder) if name is not None or weights is None else None
    for switch in switches:
        if switch not in _SWITCHES:
            allowed = ("encoder", "backbone_weights", "weights_mode", *_SWITCHES)
            raise ValueError(
                f"create_model: unknown switch {switch!r}, expected one of {', '.join(allowed)}"
                f"{_suggest(switch, allowed)}"
            )
    check_mode(weights_mode, "create_model")
    given = {key: value for key, value in {"num_classes": num_classes, **switches}.items() if value is not None}
    if weights is None:
        if weights_mode != "all":
            raise ValueError(f"create_model: weights_mode: expected weights for {weights_mode!r}, got none")
        fields = {"name": _check_name(name)}
        if fields["name"] == _OPEN and encoder is not None:
            fields["backbone"] = encoder
        model = build(_make_config(fields, given))
    else:
        backbone = _presets()[name].get("backbone", name) if name else _DEFAULT_BACKBONE
        path = resolve_weights(weights, backbone)
        checkpoint = read_checkpoint(path)
        model = build(_config_for_file(name, encoder, given, checkpoint, str(path), weights_mode))
        quantised = (checkpoint.metadata or {}).get(INT8_KEY, [])
        if quantised and weights_mode != "all":
            raise ValueError(
                "create_model: weights_mode: expected 'all' for weights in int8, which do not train, "
                f"got {weights_mode!r}"
            )
        put_int8_blocks(model, quantised, str(path))
        load_state(model, checkpoint.state, str(path), weights_mode=weights_mode)
    if backbone_weights is not None:
        if not isinstance(model, LiteSeg):
            raise ValueError(f"create_model: backbone_weights: expected none, {model.config.name} has no backbone")
        load_backbone(model, backbone_weights)
    return model
