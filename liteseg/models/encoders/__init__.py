"""Backbones: each maps an image to (low-level feature, encoded feature)."""

from __future__ import annotations

from liteseg.models.encoders.darknet19 import Darknet19
from liteseg.models.encoders.mobilenetv2 import MobileNetV2
from liteseg.models.encoders.shufflenet import ShuffleNet

# the first output stride of each is the published one
ENCODERS: dict[str, type[MobileNetV2] | type[ShuffleNet] | type[Darknet19]] = {
    "mobilenetv2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "darknet19": Darknet19,
}

__all__ = ["ENCODERS", "Darknet19", "MobileNetV2", "ShuffleNet"]
