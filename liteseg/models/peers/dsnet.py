"""DSNet (Wang and Pan, 2018, arXiv 1812.07049): ENet's plan, built of ShuffleNet v2's split and shuffled units.

Where the paper and the authors' code (`Mark-sloan/DSNet` at 938d322, `models/shuffle_tensorpack.py`,
`layers/layers_tensorpack.py`) differ, the code: PReLU with one slope, 0.001 at first, where the figure says ReLU, a
normalisation in the first block, upsampling that mixes channels before it unpools. Channels are shuffled in 4 groups,
the dilations and the number of units are the code's. Its normalisations have no scale, which the next convolution can
stand for behind a ReLU; ours are torch's, with one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg_kernels.nn import ConvNormAct

_EPS = 1e-3
_SLOPE = 1e-3
_GROUPS = 4
_STAGE2 = 2 * (1, 2, 5, 9)
_STAGE3 = 2 * (2, 5, 9, 17)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution, normalisation, PReLU."""
    return nn.Sequential(
        ConvNormAct(in_channels, out_channels, kernel_size, stride, dilation=dilation, eps=_EPS),
        nn.PReLU(init=_SLOPE),
    )


def _branch(in_channels: int, channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolution."""
    return nn.Sequential(
        _conv(in_channels, channels),
        _conv(channels, channels, 3, stride=stride, dilation=dilation),
        _conv(channels, channels),
    )


class Initial(PeerBlock):
    """[N, 3, H, W] -> [N, 16, H/2, W/2]: strided convolution beside a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(3, 13, 3, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(16, eps=_EPS)
        self.act = nn.PReLU(init=_SLOPE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(torch.cat((self.conv(x), self.pool(x)), 1)))


class Unit(PeerBlock):
    """One half of the channels passes by, the other is convolved; then both are shuffled."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passing, convolved = x.chunk(2, 1)
        return F.channel_shuffle(torch.cat((passing, self.branch(convolved)), 1), _GROUPS)


class Downsample(PeerBlock):
    """To half the size; also gives the positions of the maxima, int64 [N, in_channels, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.main = _conv(in_channels, out_channels // 2)
        self.branch = _branch(in_channels, out_channels // 2, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, indices = self.pool(x)
        return F.channel_shuffle(torch.cat((self.main(pooled), self.branch(x)), 1), _GROUPS), indices


class Upsample(PeerBlock):
    """To twice the size: values go back to where the maxima were, beside a transposed 3x3 convolution.

    The ReLU of the original behind the sum finds nothing below zero.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = ConvNormAct(in_channels, out_channels, activation="relu", eps=_EPS)
        self.unpool = nn.MaxUnpool2d(2)
        self.reduce = ConvNormAct(in_channels, out_channels, activation="relu", eps=_EPS)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(out_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(out_channels, eps=_EPS),
            nn.ReLU(),
        )
        self.expand = ConvNormAct(out_channels, out_channels, activation="relu", eps=_EPS)

    def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self.unpool(self.main(x), indices) + self.expand(self.up(self.reduce(x)))


class Encoder(nn.Module):
    """[N, 3, H, W] -> [N, 128, H/8, W/8] and the positions of the maxima of both poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.initial = Initial()
        self.down1 = Downsample(16, 64)
        self.stage1 = nn.Sequential(*(Unit(64) for _ in range(4)))
        self.down2 = Downsample(64, 128)
        self.stage2 = nn.Sequential(*(Unit(128, dilation) for dilation in _STAGE2))
        self.stage3 = nn.Sequential(*(Unit(128, dilation) for dilation in _STAGE3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, indices1 = self.down1(self.initial(x))
        x, indices2 = self.down2(self.stage1(x))
        return self.stage3(self.stage2(x)), indices1, indices2


class Decoder(nn.Module):
    """What the encoder gives -> [N, num_classes, H, W]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.up1 = Upsample(128, 64)
        self.stage1 = Unit(64)
        self.up2 = Upsample(64, 16)
        self.stage2 = Unit(16)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2, bias=False)

    def forward(self, x: torch.Tensor, indices1: torch.Tensor, indices2: torch.Tensor) -> torch.Tensor:
        x = self.stage1(self.up1(x, indices2))
        return self.classifier(self.stage2(self.up2(x, indices1)))


class DSNet(Peer):
    """DSNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("dsnet", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    class_prefixes = ("decoder.classifier.",)

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder()
        self.decoder = Decoder(config.num_classes)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(*self.encoder(x))
