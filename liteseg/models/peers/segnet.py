"""SegNet (Badrinarayanan et al., 2017): VGG16's convolutions, and their mirror image, which unpools by index.

The paper leaves channels and order to its figures; they are those of the authors' Caffe models
(`alexgkendall/SegNet-Tutorial`, `Models/segnet_train.prototxt`): a bias in every convolution, a normalisation and a
ReLU behind each but the last, Kaiming's normal distribution ("msra") for all weights. Caffe's pooling rounds sizes up
and its unpooling goes back to the size before, so no input is padded. eps and momentum of the normalisation are
torch's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig
from liteseg_kernels.nn import ConvNormAct

# channels behind each convolution of the encoder's five stages, VGG16's
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next."""
    return nn.Sequential(
        *(ConvNormAct(before, after, 3, bias=True, activation="relu") for before, after in pairwise(channels))
    )


class Down(PeerBlock):
    """Convolutions, then a 2x2 max-pool that rounds up: also the positions of the maxima and the size before."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = _convolutions(channels)
        self.pool = nn.MaxPool2d(2, return_indices=True, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:
        x = self.convs(x)
        return *self.pool(x), x.shape[-2:]


class Up(PeerBlock):
    """Values back to where the maxima were, at the size before the pool, then convolutions."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.unpool = nn.MaxUnpool2d(2)
        self.convs = _convolutions(channels)

    def forward(self, x: torch.Tensor, indices: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return self.convs(self.unpool(x, indices, size))


class Encoder(nn.Module):
    """[N, 3, H, W] -> [N, 512, H/32, W/32], sizes rounded up, and what each stage's pooling did."""

    def __init__(self) -> None:
        super().__init__()
        before = (3, *(stage[-1] for stage in _STAGES))
        self.stages = nn.ModuleList(Down((first, *stage)) for first, stage in zip(before, _STAGES, strict=False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Size]]]:
        pooled = []
        for stage in self.stages:
            x, indices, size = stage(x)
            pooled.append((indices, size))
        return x, pooled


class Decoder(nn.Module):
    """What the encoder gives -> [N, num_classes, H, W]; each stage leads to the channels that came into its twin."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stages = [Up((*_STAGES[i], _STAGES[i - 1][-1])) for i in range(len(_STAGES) - 1, 0, -1)]
        # the second convolution of the first stage's twin is the classifier
        self.stages = nn.ModuleList([*stages, Up(_STAGES[0])])
        self.classifier = nn.Conv2d(_STAGES[0][0], num_classes, 3, padding=1)

    def forward(self, x: torch.Tensor, pooled: list[tuple[torch.Tensor, torch.Size]]) -> torch.Tensor:
        for stage, (indices, size) in zip(self.stages, reversed(pooled), strict=True):
            x = stage(x, indices, size)
        return self.classifier(x)


class SegNet(Peer):
    """SegNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("segnet", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 11, 33, 47])
    """

    class_prefixes = ("decoder.classifier.",)
    multiple = 1

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder()
        self.decoder = Decoder(config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(*self.encoder(x))
