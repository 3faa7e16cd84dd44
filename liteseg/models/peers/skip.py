"""The decoder of SkipNet (Siam et al., RTSeg, 2018): FCN-8s', scores at three strides, each upsampled and added.

Numbers from the authors' code (`MSiam/TFSegmentation` at 40609dd, `models/fcn8s_mobilenet.py`, `fcn8s_shufflenet.py`):
a normalisation behind the scores of the two skips and behind both doublings, none behind the first scores and the last
upsampling; transposed convolutions of 4x4 (twice) and 16x16 (eight times the size) over all classes, that start as
bilinear interpolation. Biases in front of a normalisation, which change nothing, are left out.
"""

from __future__ import annotations

import torch
from torch import nn

from liteseg.models.peers.base import PeerBlock
from liteseg_kernels.nn import ConvNormAct


def bilinear_(weight: torch.Tensor) -> None:
    """Weights [K, K, s, s] of a transposed convolution (s even, stride s/2) that interpolate each channel by itself."""
    size = weight.shape[-1]
    half = size // 2
    # distance of every tap from the middle, in strides
    taps = 1 - (torch.arange(size) - (size - 1) / 2).abs() / half
    with torch.no_grad():
        weight.zero_()
        weight.diagonal().copy_((taps[:, None] * taps).unsqueeze(-1).expand(-1, -1, weight.shape[0]))


class Upsample(nn.Module):
    """Scores to `factor` times the size, cut to `size`, the same number of channels."""

    def __init__(self, channels: int, factor: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, factor // 2, bias=bias)
        bilinear_(self.conv.weight)

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return self.conv(x)[..., : size[0], : size[1]]


class Skip(PeerBlock):
    """Scores doubled in size, and those of a map of that size added."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.up = Upsample(num_classes, 2, bias=False)
        self.norm = nn.BatchNorm2d(num_classes)
        self.score = ConvNormAct(channels, num_classes)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(x, skip.shape[-2:])) + self.score(skip)


class SkipDecoder(nn.Module):
    """Maps at strides 8, 16 and 32, with as many channels as `channels` says -> logits [N, num_classes, *size]."""

    def __init__(self, channels: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels[2], num_classes, 1)
        self.skip16 = Skip(channels[1], num_classes)
        self.skip8 = Skip(channels[0], num_classes)
        self.classifier = Upsample(num_classes, 8, bias=True)

    def forward(self, maps: tuple[torch.Tensor, torch.Tensor, torch.Tensor], size: torch.Size) -> torch.Tensor:
        eighth, sixteenth, last = maps
        return self.classifier(self.skip8(self.skip16(self.score(last), sixteenth), eighth), size)
