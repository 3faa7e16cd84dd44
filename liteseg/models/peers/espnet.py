"""ESPNet (Mehta et al., 2018): pyramids of dilated convolutions in a few channels, and the authors' weights for it.

Modules have the names of the authors' files, so their state dicts load as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from liteseg.data.tables import CAMVID_CLASSES, CITYSCAPES_CLASSES, MEAN, STD
from liteseg.models.fields import check_choice, check_counts, check_flags, reject
from liteseg.models.peers.base import Peer, PeerBlock, PeerConfig

EPS = 1e-3
_LEVEL1_CHANNELS = 16
# level 1 and the halved picture
_HALF_CHANNELS = _LEVEL1_CHANNELS + 3
# level 2, what came into it, and the quartered picture
_QUARTER_CHANNELS = 64 + 64 + 3
# a pyramid has five branches, and the last one splits the logits' channels among them
_BRANCHES = 5
# channels that the last convolution sees besides the logits'
_LAST_CHANNELS = {"camvid": _HALF_CHANNELS, "cityscapes": _LEVEL1_CHANNELS}
# BGR in 0..255; what is left after (x - mean) / std is divided by 255 once more
_STATISTICS = {
    "camvid": ((110.33102643, 108.40886315, 105.03319369), (72.12571015, 72.69074534, 69.90434816)),
    "cityscapes": ((72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)),
}
_CLASSES = {"camvid": CAMVID_CLASSES, "cityscapes": CITYSCAPES_CLASSES}


@dataclasses.dataclass(frozen=True)
class ESPNetConfig(PeerConfig):
    """Everything needed to rebuild an ESPNet, checked when it is made.

    Attributes:
        p: pyramids in level 2 after the strided one.
        q: pyramids in level 3 after the strided one.
        variant: what joins the logits before the last convolution: level 1 and the halved picture (``"camvid"``: the
            authors' CamVid weights and present code) or level 1 alone (``"cityscapes"``: their Cityscapes weights).
        void_output: the network has one output more, for void, which ``forward`` leaves out.
        normalisation: input that the weights expect: ``"imagenet"``, that of our models, or the authors' own of their
            ``"camvid"`` or ``"cityscapes"`` weights. The input is the same RGB normalised with ImageNet's statistics
            each time, the network converts it.
    """

    p: int = 2
    q: int = 8
    variant: str = "camvid"
    void_output: bool = False
    normalisation: str = "imagenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "p", "q")
        check_choice(self, "variant", tuple(_LAST_CHANNELS))
        check_flags(self, "void_output")
        check_choice(self, "normalisation", ("imagenet", *_STATISTICS))
        if self.outputs < _BRANCHES:
            reject(self, "num_classes", f"at least {_BRANCHES} outputs (one a branch)", self.num_classes)

    @property
    def outputs(self) -> int:
        """Channels that the network computes: the classes, and void where it has that."""
        return self.num_classes + self.void_output


class Renormalise(nn.Module):
    """RGB normalised with ImageNet's statistics -> BGR normalised as the authors did it, [N, 3, H, W] both."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # ((255 (x STD + MEAN) - mean) / std) / 255, STD and MEAN turned round to BGR as well
        scale = [ours / theirs for ours, theirs in zip(reversed(STD), std, strict=True)]
        shift = [(ours - theirs / 255) / spread for ours, theirs, spread in zip(reversed(MEAN), mean, std, strict=True)]
        # constants of the configuration, not weights
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(1) * self.scale + self.shift


class Conv(nn.Module):
    """Convolution without bias that keeps the size, or halves it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class NormAct(PeerBlock):
    """Normalisation and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(x))


class ConvNormAct(PeerBlock):
    """3x3 convolution, normalisation, PReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class _Branches(PeerBlock):
    """Few channels, five dilations, each but the first two added to the one before: no grid of holes is left."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        few = out_channels // _BRANCHES
        self.c1 = Conv(in_channels, few, kernel_size, stride=stride)
        self.d1 = Conv(few, out_channels - (_BRANCHES - 1) * few, 3)
        self.d2 = Conv(few, few, 3, dilation=2)
        self.d4 = Conv(few, few, 3, dilation=4)
        self.d8 = Conv(few, few, 3, dilation=8)
        self.d16 = Conv(few, few, 3, dilation=16)

    def branches(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c1(x)
        maps = [self.d1(x), self.d2(x)]
        for convolution in (self.d4, self.d8, self.d16):
            maps.append(maps[-1] + convolution(x))
        return torch.cat(maps, 1)


class Pyramid(_Branches):
    """Spatial pyramid at its input's size; `residual` adds the input."""

    def __init__(self, in_channels: int, out_channels: int, *, residual: bool) -> None:
        super().__init__(in_channels, out_channels, 1, 1)
        self.bn = NormAct(out_channels)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.branches(x)
        return self.bn(x + y if self.residual else y)


class StridedPyramid(_Branches):
    """Spatial pyramid at half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, 2)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.branches(x)))


def _halve(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1)


class Encoder(nn.Module):
    """Picture [N, 3, H, W] -> four maps.

    They are level 1 (16 channels, stride 2), level 1 with the halved picture (19, stride 2), level 2 with the picture
    halved twice (131, stride 4) and the outputs of the encoder alone (stride 8).
    """

    def __init__(self, outputs: int, p: int, q: int) -> None:
        super().__init__()
        self.level1 = ConvNormAct(3, _LEVEL1_CHANNELS, stride=2)
        self.b1 = NormAct(_HALF_CHANNELS)
        self.level2_0 = StridedPyramid(_HALF_CHANNELS, 64)
        self.level2 = nn.ModuleList(Pyramid(64, 64, residual=True) for _ in range(p))
        self.b2 = NormAct(_QUARTER_CHANNELS)
        self.level3_0 = StridedPyramid(_QUARTER_CHANNELS, 128)
        self.level3 = nn.ModuleList(Pyramid(128, 128, residual=True) for _ in range(q))
        self.b3 = NormAct(256)
        self.classifier = Conv(256, outputs, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        halved = _halve(x)
        level1 = self.level1(x)
        half = self.b1(torch.cat((level1, halved), 1))
        first = y = self.level2_0(half)
        for pyramid in self.level2:
            y = pyramid(y)
        quarter = self.b2(torch.cat((y, first, _halve(halved)), 1))
        first = y = self.level3_0(quarter)
        for pyramid in self.level3:
            y = pyramid(y)
        return level1, half, quarter, self.classifier(self.b3(torch.cat((first, y), 1)))


def double_size(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)


class ESPNet(Peer):
    """ESPNet: float [N, 3, H, W], normalised RGB -> logits [N, num_classes, H, W]; see :class:`Peer` for sizes.

    ``create_model(weights=...)`` recognises the authors' files and sets classes, `p`, `q`, variant and normalisation;
    :func:`liteseg.load_weights` only copies tensors, into a model that has been made that way already.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("espnet", num_classes=11, q=3).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    config_class = ESPNetConfig
    class_prefixes = (
        "encoder.classifier.",
        "level3_C.",
        "br.",
        "up_l3.",
        "combine_l2_l3.",
        "up_l2.",
        "conv.",
        "classifier.",
    )

    def __init__(self, config: ESPNetConfig) -> None:
        super().__init__(config)
        outputs = config.outputs
        statistics = _STATISTICS.get(config.normalisation)
        self.renormalise = nn.Identity() if statistics is None else Renormalise(*statistics)
        self.encoder = Encoder(outputs, config.p, config.q)
        self.level3_C = Conv(_QUARTER_CHANNELS, outputs, 1)
        self.br = nn.BatchNorm2d(outputs, eps=EPS)
        self.up_l3 = nn.Sequential(double_size(outputs))
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * outputs), Pyramid(2 * outputs, outputs, residual=False))
        self.up_l2 = nn.Sequential(double_size(outputs), NormAct(outputs))
        self.conv = ConvNormAct(_LAST_CHANNELS[config.variant] + outputs, outputs)
        self.classifier = double_size(outputs)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        level1, half, quarter, eighth = self.encoder(self.renormalise(x))
        y = self.up_l3(self.br(eighth))
        y = self.up_l2(self.combine_l2_l3(torch.cat((self.level3_C(quarter), y), 1)))
        skip = half if self.config.variant == "camvid" else level1
        y = self.conv(torch.cat((y, skip), 1))
        return self.classifier(y)[:, : self.config.num_classes]


def _pyramids(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def detect_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """ESPNetConfig fields of a bare state dict of the authors', None if it is not an ESPNet's.

    Their files are told apart by shape: CamVid's has 12 outputs and Cityscapes' 20, void the last of them, and another
    variant. Of other shapes only these are taken over, every output being a class.
    """
    last, classifier = state.get("conv.conv.weight"), state.get("classifier.weight")
    if "encoder.level2_0.c1.conv.weight" not in state or last is None or classifier is None:
        return None
    if last.dim() != 4 or classifier.dim() != 4:
        return None
    outputs = classifier.shape[1]
    config: dict[str, Any] = {
        "name": "espnet",
        "num_classes": outputs,
        "p": _pyramids(state, "encoder.level2."),
        "q": _pyramids(state, "encoder.level3."),
    }
    for variant, channels in _LAST_CHANNELS.items():
        if last.shape[1] == channels + outputs:
            config["variant"] = variant
            classes = _CLASSES[variant]
            if outputs == len(classes) + 1:
                config.update(num_classes=len(classes), class_names=classes, void_output=True, normalisation=variant)
    return config
