"""SkipNet-ShuffleNet, also called ShuffleSeg (Siam et al., RTSeg, 2018): ShuffleNet v1 and FCN-8s' decoder.

Numbers from the authors' code (`MSiam/TFSegmentation` at 40609dd, `models/encoders/shufflenet.py`,
`config/experiments_config/fcn8s_shufflenet_train.yaml`): 3 groups, width 1, a normalised stem, and units whose inner
maps have a quarter of the branch's channels, not of the unit's: where the input joins the output that is less. Their
stem and max-pool are unpadded and then filled up, ours pad both sides alike, so that maps are as large.
"""

from __future__ import annotations

import torch
from torch import nn

from liteseg.models.peers.base import Peer, PeerConfig
from liteseg.models.peers.skip import SkipDecoder
from liteseg_kernels.nn import ConvNormAct, ShuffleUnit

_GROUPS = 3
_STEM = 24
# (channels, units) of each stage
_STAGES = ((240, 4), (480, 8), (960, 4))


def _stage(in_channels: int, out_channels: int, units: int, first_groups: int) -> nn.Sequential:
    first = ShuffleUnit(
        in_channels,
        out_channels,
        groups=_GROUPS,
        first_groups=first_groups,
        stride=2,
        combine="concat",
        bottleneck=(out_channels - in_channels) // 4,
    )
    return nn.Sequential(first, *(ShuffleUnit(out_channels, out_channels, groups=_GROUPS) for _ in range(units - 1)))


class Encoder(nn.Module):
    """[N, 3, H, W] -> maps at strides 8, 16 and 32, of 240, 480 and 960 channels; sizes round up."""

    channels = (_STAGES[0][0], _STAGES[1][0], _STAGES[2][0])

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, _STEM, 3, stride=2, bias=True, activation="relu")
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        # the stem's few channels are not grouped
        stages = [_stage(_STEM, *_STAGES[0], first_groups=1)]
        stages += [_stage(_STAGES[i - 1][0], *_STAGES[i], first_groups=_GROUPS) for i in (1, 2)]
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eighth = self.stages[0](self.pool(self.stem(x)))
        sixteenth = self.stages[1](eighth)
        return eighth, sixteenth, self.stages[2](sixteenth)


class SkipNetShuffleNet(Peer):
    """SkipNet-ShuffleNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer`.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("skipnet_shufflenet", num_classes=11).eval()
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
