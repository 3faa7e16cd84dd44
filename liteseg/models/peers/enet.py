"""ENet (Paszke et al., 2016): bottlenecks that remember where their max-pools found the maximum."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig


def _act(encoder: bool) -> nn.Module:
    # one slope for all channels
    return nn.PReLU() if encoder else nn.ReLU()


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalisation, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *,
        encoder: bool,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            _act(encoder),
        )


class Initial(PeerBlock):
    """[N, 3, H, W] -> [N, 16, H/2, W/2]: strided convolution beside a max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.act = _act(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(torch.cat((self.conv(x), self.pool(x)), 1)))


class Bottleneck(PeerBlock):
    """Residual block whose inner convolution is 3x3, dilated (`dilation` > 1), or 5x1 then 1x5 (`asymmetric`)."""

    def __init__(
        self, channels: int, dropout: float, *, dilation: int = 1, asymmetric: bool = False, encoder: bool = True
    ) -> None:
        super().__init__()
        inner = channels // 4
        self.reduce = ConvNorm(channels, inner, encoder=encoder)
        if asymmetric:
            self.conv = nn.Sequential(
                ConvNorm(inner, inner, (5, 1), padding=(2, 0), encoder=encoder),
                ConvNorm(inner, inner, (1, 5), padding=(0, 2), encoder=encoder),
            )
        else:
            self.conv = ConvNorm(inner, inner, 3, padding=dilation, dilation=dilation, encoder=encoder)
        self.expand = ConvNorm(inner, channels, encoder=encoder)
        self.dropout = nn.Dropout2d(dropout)
        self.act = _act(encoder)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.dropout(self.expand(self.conv(self.reduce(x)))))


class Downsample(PeerBlock):
    """To half the size; also gives the positions of the maxima, int64 [N, in_channels, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.reduce = ConvNorm(in_channels, inner, 2, stride=2, encoder=True)
        self.conv = ConvNorm(inner, inner, 3, padding=1, encoder=True)
        self.expand = ConvNorm(inner, out_channels, encoder=True)
        self.dropout = nn.Dropout2d(dropout)
        self.act = _act(True)
        self.added = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, indices = self.pool(x)
        y = self.dropout(self.expand(self.conv(self.reduce(x))))
        return self.act(F.pad(pooled, (0, 0, 0, 0, 0, self.added)) + y), indices


class Upsample(PeerBlock):
    """To twice the size: values go back to where the maxima were, beside a transposed 2x2 convolution."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.main = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.unpool = nn.MaxUnpool2d(2)
        self.reduce = ConvNorm(in_channels, inner, encoder=False)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False), nn.BatchNorm2d(inner), _act(False)
        )
        self.expand = nn.Sequential(nn.Conv2d(inner, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.dropout = nn.Dropout2d(dropout)
        self.act = _act(False)

    def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        main = self.unpool(self.main(x), indices)
        return self.act(main + self.dropout(self.expand(self.up(self.reduce(x)))))


def _context(dropout: float) -> list[Bottleneck]:
    """The eight blocks that stages 2 and 3 are made of."""
    blocks = []
    for first, second in ((2, 4), (8, 16)):
        blocks.append(Bottleneck(128, dropout))
        blocks.append(Bottleneck(128, dropout, dilation=first))
        blocks.append(Bottleneck(128, dropout, asymmetric=True))
        blocks.append(Bottleneck(128, dropout, dilation=second))
    return blocks


class Encoder(nn.Module):
    """[N, 3, H, W] -> [N, 128, H/8, W/8] and the positions of the maxima of both poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.initial = Initial()
        self.down1 = Downsample(16, 64, 0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(64, 0.01) for _ in range(4)))
        self.down2 = Downsample(64, 128, 0.1)
        self.stage2 = nn.Sequential(*_context(0.1))
        self.stage3 = nn.Sequential(*_context(0.1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, indices1 = self.down1(self.initial(x))
        x, indices2 = self.down2(self.stage1(x))
        return self.stage3(self.stage2(x)), indices1, indices2


class Decoder(nn.Module):
    """What the encoder gives -> [N, num_classes, H, W]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.up1 = Upsample(128, 64, 0.1)
        self.stage1 = nn.Sequential(Bottleneck(64, 0.1, encoder=False), Bottleneck(64, 0.1, encoder=False))
        self.up2 = Upsample(64, 16, 0.1)
        self.stage2 = Bottleneck(16, 0.1, encoder=False)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, x: torch.Tensor, indices1: torch.Tensor, indices2: torch.Tensor) -> torch.Tensor:
        x = self.stage1(self.up1(x, indices2))
        return self.classifier(self.stage2(self.up2(x, indices1)))


class ENet(Peer):
    """ENet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("enet", num_classes=11).eval()
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
