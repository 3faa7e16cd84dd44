"""MobileNetV2 1.0x without its ImageNet classifier."""

from __future__ import annotations

import math

import torch
from torch import nn

from liteseg.models.encoders.base import Encoder
from liteseg_kernels.nn import ConvNormAct, InvertedResidual
from liteseg_kernels.plan import Program

# (expansion, output channels, blocks, stride of the first block)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# the low-level feature is the output of the third block, the last one at stride 4
_LOW_LEVEL_BLOCK = 2


class MobileNetV2(Encoder):
    """MobileNetV2 encoder: float [N, in_channels, H, W] -> (low level [N, 24, H/4, W/4], encoded [N, 1280, H/s, W/s]).

    Sizes round up. ``output_stride`` s is 32 (the published network), 16 or 8: at 16 and 8 the strides that would go
    beyond it become dilations, the block that lost its stride keeping the dilation of the block before it, so that
    every output of the strided network is also one of the dilated network.
    """

    low_level_channels = 24
    out_channels = 1280
    output_strides = (32, 16, 8)
    state_prefix = "blocks."

    def __init__(self, output_stride: int = 32, in_channels: int = 3) -> None:
        super().__init__(output_stride, in_channels)
        self.stem = ConvNormAct(in_channels, 32, 3, stride=2, activation="relu6")
        blocks: list[nn.Module] = []
        channels, reached, dilation = 32, 2, 1
        for expansion, out_channels, count, stride in _STAGES:
            for index in range(count):
                block_stride = stride if index == 0 else 1
                block_dilation = dilation
                if reached * block_stride > output_stride:
                    dilation *= block_stride
                    block_stride = 1
                reached *= block_stride
                blocks.append(
                    InvertedResidual(channels, out_channels, block_stride, expansion, dilation=block_dilation)
                )
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.last = ConvNormAct(channels, self.out_channels, 1, activation="relu6")
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))

    def lower(self, program: Program, x: int) -> tuple[int, int]:
        """Add the encoder to a plan; the values of the low-level and the encoded feature."""
        x = low_level = program.run(self.stem, "stem", x)
        for index, block in enumerate(self.blocks):
            x = program.run(block, f"blocks.{index}", x)
            if index == _LOW_LEVEL_BLOCK:
                low_level = x
        return low_level, program.run(self.last, "last", x)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        low_level = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == _LOW_LEVEL_BLOCK:
                low_level = x
        return low_level, self.last(x)
