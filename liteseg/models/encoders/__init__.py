"""Backbones: each maps an image to (low-level feature, encoded feature)."""

from __future__ import annotations

from liteseg.models.encoders.base import Encoder
from liteseg.models.encoders.darknet19 import Darknet19
from liteseg.models.encoders.mobilenetv2 import MobileNetV2
from liteseg.models.encoders.shufflenet import ShuffleNet
from liteseg.models.encoders.timm_backbone import PREFIX as _TIMM
from liteseg.models.encoders.timm_backbone import TimmBackbone

# names of models and configurations, and recognising weights files, follow from this
ENCODERS: dict[str, type[Encoder]] = {
    "mobilenetv2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "darknet19": Darknet19,
}


def encoder_class(backbone: str) -> type[Encoder] | None:
    """The class of the backbone of this name, be it of `ENCODERS` or ``timm/<model>``; None where there is none."""
    if not isinstance(backbone, str):
        return None
    return TimmBackbone if backbone.startswith(_TIMM) else ENCODERS.get(backbone)


def make_encoder(backbone: str, output_stride: int, in_channels: int) -> Encoder:
    """The backbone of this name, of those that `encoder_class` knows."""
    if encoder_class(backbone) is TimmBackbone:
        return TimmBackbone(backbone, output_stride, in_channels)
    return ENCODERS[backbone](output_stride, in_channels)


__all__ = [
    "ENCODERS",
    "Darknet19",
    "Encoder",
    "MobileNetV2",
    "ShuffleNet",
    "TimmBackbone",
    "encoder_class",
    "make_encoder",
]
