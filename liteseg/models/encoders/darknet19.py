"""Darknet19 without its ImageNet classifier."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from liteseg.models.encoders.base import Encoder
from liteseg_kernels.nn import ConvNormAct


class _Layer(NamedTuple):
    number: int
    out_channels: int  # 0: max-pool
    kernel_size: int = 2
    official_padding: int = 0


# layer numbers count the pools, as in the authors' checkpoints; the official paddings of layers 14 to 23 do not match
# their kernel and dilation (some layers grow the map by 2, others shrink it by 2), but trained weights depend on them
_LAYERS = (
    _Layer(1, 32, 3, 1),
    _Layer(2, 0),
    _Layer(3, 64, 3, 1),
    _Layer(4, 0),
    _Layer(5, 128, 3, 1),
    _Layer(6, 64, 1, 0),
    _Layer(7, 128, 3, 1),
    _Layer(8, 0),
    _Layer(9, 256, 3, 1),
    _Layer(10, 128, 1, 0),
    _Layer(11, 256, 3, 1),
    _Layer(12, 0),
    _Layer(13, 512, 3, 1),
    _Layer(14, 256, 1, 1),
    _Layer(15, 512, 3, 1),
    _Layer(16, 256, 1, 1),
    _Layer(17, 512, 3, 1),
    _Layer(18, 0),
    _Layer(19, 1024, 3, 1),
    _Layer(20, 512, 1, 1),
    _Layer(21, 1024, 3, 1),
    _Layer(22, 512, 1, 0),
    _Layer(23, 1024, 3, 1),
)
_LOW_LEVEL_LAYER = 7
_LAST_POOL = 18


class Darknet19(Encoder):
    """Darknet19 encoder: float [N, in_channels, H, W] -> (low level [N, 128, H/4, W/4], encoded [N, 1024, H/s, W/s]).

    Sizes round down, one pool after the other. ``output_stride`` s is 16 (the published network: no fifth pool, layers
    19 to 23 dilated by 2, with the authors' paddings) or 32 (five pools, no dilation, padding that keeps the size).
    BatchNorm momentum is 0.01, LeakyReLU slope 0.1.
    """

    low_level_channels = 128
    out_channels = 1024
    output_strides = (16, 32)
    # the low-level feature's own are too many
    decoder_channels = 32
    state_prefix = "low."

    def __init__(self, output_stride: int = 16, in_channels: int = 3) -> None:
        super().__init__(output_stride, in_channels)
        official = output_stride == 16
        self.low = nn.Sequential()
        self.high = nn.Sequential()
        channels = in_channels
        for layer in _LAYERS:
            module: nn.Module
            if layer.out_channels:
                module = ConvNormAct(
                    channels,
                    layer.out_channels,
                    layer.kernel_size,
                    padding=layer.official_padding if official else layer.kernel_size // 2,
                    dilation=2 if official and layer.number > _LAST_POOL else 1,
                    activation="leaky_relu",
                    negative_slope=0.1,
                    momentum=0.01,
                )
                channels = layer.out_channels
            elif official and layer.number == _LAST_POOL:
                # the authors made it a 1x1 pool of stride 1
                module = nn.Identity()
            else:
                module = nn.MaxPool2d(2)
            part = self.low if layer.number <= _LOW_LEVEL_LAYER else self.high
            part.add_module(str(layer.number), module)
