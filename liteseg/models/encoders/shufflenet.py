"""ShuffleNet v1 1.0x with 8 groups, without its ImageNet classifier."""

from __future__ import annotations

import torch
from torch import nn

from liteseg.models.encoders.base import Encoder
from liteseg_kernels.nn import ConvNormAct, ShuffleUnit
from liteseg_kernels.plan import Program

_GROUPS = 8


class ShuffleNet(Encoder):
    """ShuffleNet encoder: float [N, in_channels, H, W] -> (low level [N, 384, H/8, W/8], encoded [N, 1536, H/s, W/s]).

    Sizes round up. ``output_stride`` s is 32 (the published network) or 16, where stage 4 keeps its input's size and
    its later units are dilated by 2. Every convolution has a bias, the stem has neither normalisation nor activation.
    """

    low_level_channels = 384
    out_channels = 1536
    output_strides = (32, 16)
    # the low-level feature's own are too many
    decoder_channels = 48
    state_prefix = "stage2."

    def __init__(self, output_stride: int = 32, in_channels: int = 3) -> None:
        super().__init__(output_stride, in_channels)
        dense = output_stride == 16
        self.stem = ConvNormAct(in_channels, 24, 3, stride=2, bias=True, norm=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        # the 24 input channels of stage 2 are too few for 8 groups, so its first compression is ungrouped
        self.stage2 = self._stage(24, 384, 4, first_groups=1)
        self.stage3 = self._stage(384, 768, 8)
        self.stage4 = self._stage(768, 1536, 4, stride=1 if dense else 2, dilation=2 if dense else 1)

    @staticmethod
    def _stage(
        in_channels: int,
        out_channels: int,
        units: int,
        *,
        first_groups: int = _GROUPS,
        stride: int = 2,
        dilation: int = 1,
    ) -> nn.Sequential:
        first = ShuffleUnit(
            in_channels, out_channels, groups=_GROUPS, first_groups=first_groups, stride=stride, combine="concat"
        )
        rest = [ShuffleUnit(out_channels, out_channels, groups=_GROUPS, dilation=dilation) for _ in range(units - 1)]
        return nn.Sequential(first, *rest)

    def lower(self, program: Program, x: int) -> tuple[int, int]:
        """Add the encoder to a plan; the values of the low-level and the encoded feature."""
        x = program.run(self.stem, "stem", x)
        x = low_level = program.run(self.pool, "pool", x)
        for name in ("stage2", "stage3", "stage4"):
            for index, unit in enumerate(getattr(self, name)):
                x = program.run(unit, f"{name}.{index}", x)
            if name == "stage2":
                low_level = x
        return low_level, x

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low_level = self.stage2(self.pool(self.stem(x)))
        return low_level, self.stage4(self.stage3(low_level))
