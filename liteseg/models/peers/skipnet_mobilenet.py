"""SkipNet-MobileNet (Siam et al., RTSeg, 2018): MobileNetV1 and FCN-8s' decoder.

Numbers from the authors' code (`MSiam/TFSegmentation` at 40609dd, `models/encoders/mobilenet.py`): width 1, ReLU6,
scores from the last map and from the first map of 512 and of 256 channels. Strided convolutions pad both sides alike;
TensorFlow's "SAME" shifts them by one pixel at even sizes. Biases in front of a normalisation, which change nothing,
are left out.
"""

from __future__ import annotations

import torch
from torch import nn

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg.models.peers.skip import SkipDecoder
from liteseg_kernels.nn import ConvNormAct, InvertedResidual

# (channels, stride) of the blocks up to each of the three maps that are scored
_STAGES = (
    ((64, 1), (128, 2), (128, 1), (256, 2)),
    ((256, 1), (512, 2)),
    (*(5 * ((512, 1),)), (1024, 2), (1024, 1)),
)


class SeparableBlock(PeerBlock):
    """Depthwise and pointwise convolution, each normalised and with ReLU6.

    MobileNetV2's block without expansion and shortcut is all of it but the last activation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = InvertedResidual(in_channels, out_channels, stride, 1, residual=False)
        self.act = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


class Encoder(nn.Module):
    """[N, 3, H, W] -> maps at strides 8, 16 and 32, of 256, 512 and 1024 channels; sizes round up."""

    channels = (_STAGES[0][-1][0], _STAGES[1][-1][0], _STAGES[2][-1][0])

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 32, 3, stride=2, activation="relu6")
        stages, before = [], 32
        for stage in _STAGES:
            blocks = []
            for channels, stride in stage:
                blocks.append(SeparableBlock(before, channels, stride))
                before = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eighth = self.stages[0](self.stem(x))
        sixteenth = self.stages[1](eighth)
        return eighth, sixteenth, self.stages[2](sixteenth)


class SkipNetMobileNet(Peer):
    """SkipNet-MobileNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer`.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("skipnet_mobilenet", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    class_prefixes = ("decoder.",)
    multiple = 1

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder()
        self.decoder = SkipDecoder(self.encoder.channels, config.num_classes)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x), x.shape[-2:])
