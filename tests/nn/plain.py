"""The torch.nn compositions that the modules of liteseg_kernels stand for: same names, written without the library."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

ACTIVATIONS = {None: nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU}


def conv(
    c: int,
    out: int,
    k: int | tuple[int, int] = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    *,
    bias: bool = False,
    norm: bool = True,
    activation: str | None = None,
    eps: float = 1e-5,
) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module]()
    sides = (k, k) if isinstance(k, int) else k
    padding = tuple(dilation * (side - 1) // 2 for side in sides)
    parts["conv"] = nn.Conv2d(c, out, k, stride, padding, dilation, groups, bias)
    if norm:
        parts["norm"] = nn.BatchNorm2d(out, eps)
    parts["activation"] = ACTIVATIONS[activation]()
    return nn.Sequential(parts)


def separable(
    c: int,
    out: int,
    k: int = 3,
    stride: int = 1,
    dilation: int = 1,
    *,
    bias: bool = False,
    norm: bool = True,
    activation: str | None = None,
) -> nn.Sequential:
    parts = OrderedDict[str, nn.Module]()
    parts["depthwise"] = nn.Conv2d(c, c, k, stride, dilation * (k - 1) // 2, dilation, c, bias=False)
    parts["pointwise"] = nn.Conv2d(c, out, 1, bias=bias)
    if norm:
        parts["norm"] = nn.BatchNorm2d(out)
    parts["activation"] = ACTIVATIONS[activation]()
    return nn.Sequential(parts)


class InvertedResidual(nn.Module):
    def __init__(self, c: int, out: int, stride: int, ratio: int, dilation: int = 1, residual: bool = True) -> None:
        super().__init__()
        hidden = c * ratio
        self.expand = conv(c, hidden, activation="relu6") if ratio != 1 else None
        self.depthwise = conv(hidden, hidden, 3, stride, dilation, hidden, activation="relu6")
        self.project = conv(hidden, out)
        self.residual = residual and stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return x + out if self.residual else out


class ShuffleUnit(nn.Module):
    def __init__(
        self,
        c: int,
        out: int,
        groups: int,
        first: int,
        stride: int = 1,
        concat: bool = False,
        middle: int | None = None,
    ) -> None:
        super().__init__()
        middle = middle or out // 4
        self.compress = conv(c, middle, groups=first, bias=True, activation="relu")
        self.depthwise = conv(middle, middle, 3, stride, groups=middle, bias=True)
        self.expand = conv(middle, out - c if concat else out, groups=groups, bias=True)
        self.groups, self.stride, self.concat = groups, stride, concat

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.depthwise(tf.channel_shuffle(self.compress(x), self.groups)))
        return tf.relu(torch.cat((tf.avg_pool2d(x, 3, self.stride, 1), out), 1) if self.concat else x + out)


class DASPP(nn.Module):
    def __init__(
        self, c: int, filters: int, rates: Sequence[int], deeper: bool = True, split: bool = True, short: bool = True
    ) -> None:
        super().__init__()
        block = separable if split else conv
        first = None if deeper else "relu"
        self.short = short
        self.point = block(c, filters, 1, activation=first)
        self.atrous = nn.ModuleList(block(c, filters, 3, dilation=rate, activation=first) for rate in rates)
        self.deep = nn.ModuleList(block(filters, filters, 3, activation="relu") for _ in rates if deeper)
        self.pool = conv(c, filters, activation="relu")
        self.project = block((len(rates) + 2) * filters + (c if short else 0), filters, 1, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in self.atrous]
        for i, deep in enumerate(self.deep):
            branches[i] = deep(branches[i])
        pooled = self.pool(tf.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat((*((x,) if self.short else ()), self.point(x), *branches, pooled), 1))


class MobileNetV2(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = conv(channels, 32, 3, 2, activation="relu6")
        stages = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        widths = [32, *(out for _, out, count, _ in stages for _ in range(count))]
        strides = [stride if i == 0 else 1 for _, _, count, stride in stages for i in range(count)]
        ratios = [ratio for ratio, _, count, _ in stages for _ in range(count)]
        pairs = zip(widths, widths[1:], strides, ratios, strict=False)
        self.blocks = nn.ModuleList(InvertedResidual(c, out, stride, ratio) for c, out, stride, ratio in pairs)
        self.last = conv(320, 1280, activation="relu6")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = low = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            low = x if index <= 2 else low
        return low, self.last(x)


class ShuffleNet(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = conv(channels, 24, 3, 2, bias=True, norm=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for name, c, out, count, first in (
            ("stage2", 24, 384, 4, 1),
            ("stage3", 384, 768, 8, 8),
            ("stage4", 768, 1536, 4, 8),
        ):
            rest = (ShuffleUnit(out, out, 8, 8) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(ShuffleUnit(c, out, 8, first, 2, True), *rest))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.stage2(self.pool(self.stem(x)))
        return low, self.stage4(self.stage3(low))


class Darknet19(nn.Module):
    """At output stride 16, with the paddings of the published network."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        # number, channels, kernel, padding, dilation; pools have none, and the last one is gone
        layers = (
            "1 32 3 1 1,2,3 64 3 1 1,4,5 128 3 1 1,6 64 1 0 1,7 128 3 1 1,8,9 256 3 1 1,10 128 1 0 1,11 256 3 1 1,12,"
        )
        layers += "13 512 3 1 1,14 256 1 1 1,15 512 3 1 1,16 256 1 1 1,17 512 3 1 1,18,19 1024 3 1 2,20 512 1 1 2,"
        layers += "21 1024 3 1 2,22 512 1 0 2,23 1024 3 1 2"
        self.low, self.high = nn.Sequential(), nn.Sequential()
        for layer in layers.split(","):
            number, *rest = map(int, layer.split())
            part: nn.Module = nn.Identity() if number == 18 else nn.MaxPool2d(2)
            if rest:
                out, kernel, padding, dilation = rest
                part = conv(channels, out, kernel, dilation=dilation, activation="leaky_relu")
                part.conv.padding, part.activation.negative_slope = (padding, padding), 0.1
                part.norm.momentum, channels = 0.01, out
            (self.low if number <= 7 else self.high).add_module(str(number), part)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(x)
        return low, self.high(low)


class LiteSeg(nn.Module):
    def __init__(self, backbone: str, classes: int, channels: int = 3) -> None:
        super().__init__()
        encoder, low, encoded = {
            "mobilenetv2": (MobileNetV2, 24, 1280),
            "shufflenet": (ShuffleNet, 384, 1536),
            "darknet19": (Darknet19, 128, 1024),
        }[backbone]
        self.backbone = encoder(channels)
        self.daspp = DASPP(encoded, 96, (3, 6, 9))
        self.reduce = None
        if backbone != "mobilenetv2":
            reduced = {"shufflenet": 48, "darknet19": 32}[backbone]
            self.reduce, low = separable(low, reduced, 1, activation="relu"), reduced
        self.decoder = nn.Sequential(separable(96 + low, 96, activation="relu"), separable(96, 96, activation="relu"))
        self.classifier = nn.Conv2d(96, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, encoded = self.backbone(x)
        skip = low if self.reduce is None else self.reduce(low)
        y = tf.interpolate(self.daspp(encoded), low.shape[2:], mode="bilinear", align_corners=True)
        logits = self.classifier(self.decoder(torch.cat((y, skip), 1)))
        return tf.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
