"""ERFNet (Romera et al., 2018): residual blocks of one-dimensional convolutions."""

from __future__ import annotations

import torch
from torch import nn

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig

_EPS = 1e-3


class Downsample(PeerBlock):
    """Strided 3x3 convolution beside a 2x2 max-pool, together [N, out_channels, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(torch.cat((self.conv(x), self.pool(x)), 1)))


class NonBottleneck1d(PeerBlock):
    """Residual block with two pairs of 3x1 and 1x3 convolutions, the second pair dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        self.column1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.column1_act = nn.ReLU()
        self.row1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.act1 = nn.ReLU()
        self.column2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.column2_act = nn.ReLU()
        self.row2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.norm2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout2d(dropout)
        self.act2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.norm1(self.row1(self.column1_act(self.column1(x)))))
        y = self.norm2(self.row2(self.column2_act(self.column2(y))))
        return self.act2(self.dropout(y) + x)


class Upsample(PeerBlock):
    """Transposed 3x3 convolution to twice the height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


class Encoder(nn.Module):
    """[N, 3, H, W] -> [N, 128, H/8, W/8]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stage1 = Downsample(3, 16)
        self.stage2 = nn.Sequential(Downsample(16, 64), *(NonBottleneck1d(64, 0.03, 1) for _ in range(5)))
        dilated = (NonBottleneck1d(128, 0.3, dilation) for dilation in 2 * (2, 4, 8, 16))
        self.stage3 = nn.Sequential(Downsample(64, 128), *dilated)
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stage3(self.stage2(self.stage1(x)))


class Decoder(nn.Module):
    """[N, 128, h, w] -> [N, num_classes, 8 h, 8 w]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.up1 = Upsample(128, 64)
        self.stage1 = nn.Sequential(NonBottleneck1d(64, 0, 1), NonBottleneck1d(64, 0, 1))
        self.up2 = Upsample(64, 16)
        self.stage2 = nn.Sequential(NonBottleneck1d(16, 0, 1), NonBottleneck1d(16, 0, 1))
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stage2(self.up2(self.stage1(self.up1(x)))))


class ERFNet(Peer):
    """ERFNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    The encoder's own classifier serves only :meth:`encoder_logits`, for training the encoder first as the authors do.
    It counts among the published parameters but gets no gradient from ``forward``: distributed training needs
    ``find_unused_parameters`` or that part frozen.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("erfnet", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    class_prefixes = ("encoder.classifier.", "decoder.classifier.")

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.num_classes)
        self.decoder = Decoder(config.num_classes)

    def encoder_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the encoder alone, [N, num_classes, H/8, W/8]; H and W must be multiples of 8."""
        self._check_input(x)
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"ERFNet: x: expected multiples of 8, got {x.shape[2]}x{x.shape[3]}")
        return self.encoder.classifier(self.encoder(x))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))
