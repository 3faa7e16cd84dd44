"""What a bare state dict of one of our networks says about the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from liteseg.models.encoders import ENCODERS

# the start of keys that no other network has
_PEERS = {"encoder.initial.": "enet", "encoder.classifier.": "erfnet"}
# the last layer's weight, and which of its dimensions are the classes
_LITESEG_CLASSIFIER = ("classifier.weight", 0)
_PEER_CLASSIFIERS = {"erfnet": ("decoder.classifier.weight", 1), "enet": ("decoder.classifier.weight", 1)}


def classes_in(state: Mapping[str, torch.Tensor], name: str) -> int | None:
    """Number of classes of a state dict of the network of this name, None where it has no such layer."""
    if name == "espnet":
        # void may be among its outputs
        return None
    key, dimension = _PEER_CLASSIFIERS.get(name, _LITESEG_CLASSIFIER)
    weight = state.get(key)
    return None if weight is None or weight.dim() != 4 else weight.shape[dimension]


def detect_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Fields of the configuration of a network of ours but ESPNet, as far as its keys say; None of other state dicts.

    A LiteSeg's has a backbone and no name: names differ by defaults alone.
    """

    def starts(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    for backbone, encoder in ENCODERS.items():
        if encoder.state_prefix is not None and starts(f"backbone.{encoder.state_prefix}"):
            config: dict[str, Any] = {
                "backbone": backbone,
                "separable": starts("decoder.0.depthwise."),
                "deeper": starts("daspp.deep."),
                "num_classes": classes_in(state, backbone),
            }
            return {field: value for field, value in config.items() if value is not None}
    for prefix, name in _PEERS.items():
        count = classes_in(state, name)
        if starts(prefix) and count is not None:
            return {"name": name, "num_classes": count}
    return None
