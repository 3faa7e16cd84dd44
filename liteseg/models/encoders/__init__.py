"""Backbones: each maps an image to (low-level feature, encoded feature)."""

from __future__ import annotations

from liteseg.models.encoders.base import Encoder
from liteseg.models.encoders.darknet19 import Darknet19
from liteseg.models.encoders.mobilenetv2 import MobileNetV2
from liteseg.models.encoders.shufflenet import ShuffleNet

# names of models and configurations, and recognising weights files, follow from this
ENCODERS: dict[str, type[Encoder]] = {
    "mobilenetv2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "darknet19": Darknet19,
}

__all__ = ["ENCODERS", "Darknet19", "Encoder", "MobileNetV2", "ShuffleNet"]
