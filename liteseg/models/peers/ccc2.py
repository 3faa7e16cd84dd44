"""CCC2 (Park et al., 2018): ESPNet whose dilated convolutions are concentrated-comprehensive ones.

Structure and numbers from the authors' code (`clovaai/c3_sinet` at dd91638, `models/C3.py`, `setting/C3.json`): modules
of four branches without ESPNet's sums between them, dilations 2, 3, 7 and 13, which make the published 0.19 M
parameters (2, 4, 8 and 16 make 0.20 M), and halved pictures averaged over 2x2. Their modules run the first convolution
twice and use the second result; once is the same.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

import liteseg_kernels as lk
from liteseg.models.fields import reject
from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg.models.peers.espnet import EPS, Conv, ConvNormAct, NormAct, double_size

_DILATIONS = (2, 3, 7, 13)
# modules behind the strided one of each level
_LEVEL2, _LEVEL3 = 2, 8
# level 1 and the halved picture; level 2, what came into it, and the quartered picture
_HALF_CHANNELS, _QUARTER_CHANNELS = 16 + 3, 64 + 64 + 3


@dataclasses.dataclass(frozen=True)
class CCC2Config(PeerConfig):
    """Everything needed to rebuild a CCC2, checked when it is made; see :class:`PeerConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < len(_DILATIONS):
            # the decoder's module splits the classes among its branches
            reject(self, "num_classes", f"at least {len(_DILATIONS)} (one a branch)", self.num_classes)


class ConcentratedComprehensive(nn.Sequential):
    """What stands for a dense 3x3 convolution of that dilation: [N, in_channels, H, W] -> [N, out_channels, H, W].

    Two one-dimensional depthwise convolutions gather what lies between the taps of the dilated one, which is depthwise
    too; then the channels mix.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        # up to the next tap on either side
        length = 2 * dilation - 1
        super().__init__(
            lk.ConvNormAct(in_channels, in_channels, (length, 1), groups=in_channels),
            nn.PReLU(in_channels),
            lk.ConvNormAct(in_channels, in_channels, (1, length), groups=in_channels),
            lk.SeparableConv2d(in_channels, out_channels, 3, dilation=dilation, norm=False),
        )


class Module(PeerBlock):
    """Few channels, four dilations side by side, normalisation and PReLU.

    `stride=2` halves the size by a 3x3 convolution in front, `residual` adds the input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        few = out_channels // len(_DILATIONS)
        # what is left over goes to the first branch
        first = out_channels - (len(_DILATIONS) - 1) * few
        self.reduce = Conv(in_channels, few, 1 if stride == 1 else 3, stride=stride)
        self.branches = nn.ModuleList(
            ConcentratedComprehensive(few, few if index else first, dilation)
            for index, dilation in enumerate(_DILATIONS)
        )
        self.act = NormAct(out_channels)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(x)
        y = torch.cat([branch(reduced) for branch in self.branches], 1)
        return self.act(x + y if self.residual else y)


class Encoder(nn.Module):
    """Picture [N, 3, H, W] -> maps of stride 2 (19 channels), 4 (131) and 8 (one channel a class)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.level1 = ConvNormAct(3, 16, stride=2)
        self.act_half = NormAct(_HALF_CHANNELS)
        self.down2 = Module(_HALF_CHANNELS, 64, stride=2)
        self.level2 = nn.Sequential(*(Module(64, 64, residual=True) for _ in range(_LEVEL2)))
        self.act_quarter = NormAct(_QUARTER_CHANNELS)
        self.down3 = Module(_QUARTER_CHANNELS, 128, stride=2)
        self.level3 = nn.Sequential(*(Module(128, 128, residual=True) for _ in range(_LEVEL3)))
        self.act_eighth = NormAct(2 * 128)
        self.classifier = Conv(2 * 128, num_classes, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        halved = F.avg_pool2d(x, 2)
        half = self.act_half(torch.cat((self.level1(x), halved), 1))
        first = self.down2(half)
        quarter = self.act_quarter(torch.cat((self.level2(first), first, F.avg_pool2d(halved, 2)), 1))
        first = self.down3(quarter)
        return half, quarter, self.classifier(self.act_eighth(torch.cat((first, self.level3(first)), 1)))


class Decoder(nn.Module):
    """What the encoder gives -> logits [N, num_classes, H, W]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_classes, eps=EPS)
        self.up8 = double_size(num_classes)
        self.score = Conv(_QUARTER_CHANNELS, num_classes, 1)
        self.fuse4 = nn.Sequential(NormAct(2 * num_classes), Module(2 * num_classes, num_classes))
        self.up4 = nn.Sequential(double_size(num_classes), NormAct(num_classes))
        self.fuse2 = ConvNormAct(_HALF_CHANNELS + num_classes, num_classes)
        self.classifier = double_size(num_classes)

    def forward(self, half: torch.Tensor, quarter: torch.Tensor, eighth: torch.Tensor) -> torch.Tensor:
        y = self.up8(self.norm(eighth))
        y = self.up4(self.fuse4(torch.cat((self.score(quarter), y), 1)))
        return self.classifier(self.fuse2(torch.cat((y, half), 1)))


class CCC2(Peer):
    """CCC2: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("ccc2", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    config_class = CCC2Config
    class_prefixes = ("encoder.classifier.", "decoder.")

    def __init__(self, config: CCC2Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.num_classes)
        self.decoder = Decoder(config.num_classes)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(*self.encoder(x))
