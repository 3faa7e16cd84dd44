"""Networks of plain torch.nn, as people write them, and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from liteseg_kernels.compiler.resize import interpolate


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> Any:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)


def conv_norm(*args: Any, activation: type[nn.Module] | None = None, **kwargs: Any) -> nn.Sequential:
    convolution = conv(*args, **kwargs)
    parts = [convolution, nn.BatchNorm2d(convolution.out_channels, eps=1e-3)]
    return nn.Sequential(*parts, *([activation(inplace=True)] if activation else []))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(tf.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)


class OldHardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return tf.relu6(x + 3.0) / 6.0


class Bottleneck(nn.Module):
    def __init__(
        self,
        channels: tuple[int, int],
        *,
        stride: int = 1,
        ratio: int = 6,
        kernel: int = 3,
        dilation: int = 1,
        activation: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = channels[0] * ratio
        parts: list[nn.Module] = []
        if ratio > 1:
            parts.append(conv_norm(channels[0], hidden, 1, activation=activation))
        parts.append(conv_norm(hidden, hidden, kernel, stride, hidden, dilation, activation=activation))
        if gate is not None:
            parts.append(SqueezeExcite(hidden, gate))
        parts.append(conv_norm(hidden, channels[1], 1))
        self.body = nn.Sequential(*parts)
        self.adds = stride == 1 and channels[0] == channels[1]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class DeepLab(nn.Module):
    """MobileNetV2-like encoder, ASPP with dense and separable branches, decoder with a skip connection."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6, kernel: int = 3, gate: nn.Module | None = None) -> None:
        super().__init__()
        shared: dict[str, Any] = {"activation": activation, "kernel": kernel, "gate": gate}
        self.stem = conv_norm(3, 16, 3, 2, activation=activation)
        self.low = nn.Sequential(
            Bottleneck((16, 12), ratio=1, **shared),
            Bottleneck((12, 20), stride=2, **shared),
            Bottleneck((20, 20), **shared),
        )
        self.high = nn.Sequential(
            Bottleneck((20, 24), stride=2, **shared),
            Bottleneck((24, 24), dilation=2, **shared),
            conv_norm(24, 40, 1, activation=activation),
        )
        self.branches = nn.ModuleList(
            (
                conv_norm(40, 16, 1, activation=nn.ReLU),
                conv_norm(40, 16, 3, dilation=3, activation=nn.ReLU),
                nn.Sequential(conv(40, 40, 3, groups=40, dilation=6), conv_norm(40, 16, 1, activation=nn.ReLU)),
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(40, 16, 1, activation=nn.ReLU))
        self.project = conv_norm(64, 24, 1, activation=nn.ReLU)
        self.dropout = nn.Dropout(0.5)
        self.decode = nn.Sequential(conv(44, 44, 3, groups=44), conv_norm(44, 32, 1, activation=nn.ReLU))
        self.classifier = nn.Conv2d(32, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(self.stem(x))
        high = self.high(low)
        pooled = tf.interpolate(self.pool(high), size=high.shape[2:], mode="bilinear", align_corners=False)
        pyramid = self.dropout(self.project(torch.cat([*(branch(high) for branch in self.branches), pooled], 1)))
        up = tf.interpolate(pyramid, size=low.shape[2:], mode="bilinear", align_corners=False)
        logits = self.classifier(self.decode(torch.cat([up, low], 1)))
        return tf.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


class UNet(nn.Module):
    """Dense convolutions, max pools, nearest resize, concatenations, transposed convolution at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm(3, 24, 3, activation=nn.ReLU)
        self.down2 = conv_norm(24, 32, 3, activation=nn.ReLU)
        self.up = conv_norm(56, 24, 3, activation=nn.ReLU)
        self.last = nn.ConvTranspose2d(24, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(tf.max_pool2d(first, 2))
        up = self.up(torch.cat([tf.interpolate(second, scale_factor=2, mode="nearest"), first], 1))
        return self.last(tf.avg_pool2d(up, 3, 2, 1))


_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    tf.relu,
    tf.relu6,
    tf.hardswish,
    tf.silu,
    torch.sigmoid,
    tf.hardsigmoid,
    lambda x: tf.leaky_relu(x, 0.2),
    lambda x: x * tf.relu6(x + 3) / 6,
    lambda x: torch.clamp(x, -1, 1),
    torch.tanh,
)


class RandomNet(nn.Module):
    """A graph drawn from a seed: convolutions of all kinds, norms, activations, sums, products, concatenations, pools,
    resizes, odd padding, results in the middle."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.parts = nn.ModuleList()
        self.steps: list[Callable[[list[Tensor]], Tensor]] = []
        draw = self.draw
        self.size = (draw.randint(1, 3), draw.choice((1, 3, 4, 16)), draw.randint(5, 20), draw.randint(5, 24))
        # channels and size classes of the maps so far
        maps = [(self.size[1], (0,))]
        for _ in range(draw.randint(3, 12)):
            self._grow(maps)
        count = draw.randint(1, min(3, len(self.steps)))
        self.results = sorted({len(maps) - 1, *draw.sample(range(1, len(maps)), count)})

    def _add(self, module: nn.Module) -> nn.Module:
        self.parts.append(module)
        return module

    def _grow(self, maps: list[tuple[int, Any]]) -> None:
        draw = self.draw
        # mostly go on from the newest maps
        at = draw.choice((len(maps) - 1, len(maps) - 1, draw.randrange(len(maps))))
        channels, place = maps[at]
        kind = draw.choice(("point", "depthwise", "dense", "norm", "activation", "activation", "add", "concat"))
        if draw.random() < 0.25:
            kind = draw.choice(("pool", "resize", "pad", "excite", "scalar", "mean", "grouped", "block", "block"))
        out = draw.choice((channels, 1, 7, 8, 16, 17, 33))
        kernel, stride, dilation = draw.choice((1, 3, 3, 5)), draw.choice((1, 1, 1, 2)), draw.choice((1, 1, 2, 3))
        padding = draw.choice((dilation * (kernel - 1) // 2, dilation * (kernel - 1) // 2 + 1))
        same = stride == 1 and padding == dilation * (kernel - 1) // 2
        bias = draw.random() < 0.5
        fresh: Any = (len(maps),)
        if kind == "point":
            module = self._add(nn.Conv2d(channels, out, 1, bias=bias))
            maps.append((out, place))
        elif kind in ("dense", "depthwise", "grouped"):
            groups = {"dense": 1, "depthwise": channels, "grouped": 2 if channels % 2 == 0 else 1}[kind]
            out = {"dense": out, "depthwise": channels, "grouped": 2 * channels}[kind]
            module = self._add(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias))
            maps.append((out, place if same else fresh))
        elif kind == "norm":
            module = self._add(nn.BatchNorm2d(channels, affine=bias))
            maps.append((channels, place))
        elif kind == "block":
            module = self._add(Bottleneck((channels, channels), ratio=draw.choice((1, 3)), kernel=draw.choice((3, 5))))
            for part in module.modules():
                if isinstance(part, nn.ReLU6):
                    part.inplace = False
            maps.append((channels, place))
        elif kind == "activation":
            function = draw.choice(_ACTIVATIONS)
            self.steps.append(lambda m, at=at: function(m[at]))
            maps.append((channels, place))
            return
        elif kind in ("add", "concat"):
            fitting = [i for i, (c, p) in enumerate(maps) if p == place and (kind == "concat" or c == channels)]
            other = draw.choice(fitting)
            if kind == "concat":
                self.steps.append(lambda m, at=at, other=other: torch.cat([m[at], m[other]], 1))
                maps.append((channels + maps[other][0], place))
            else:
                combine = draw.choice((torch.add, torch.add, torch.mul))
                self.steps.append(lambda m, at=at, other=other, combine=combine: combine(m[at], m[other]))
                maps.append((channels, place))
            return
        elif kind == "excite":
            gate = draw.choice((torch.sigmoid, tf.hardsigmoid, OldHardSigmoid()))
            module = self._add(nn.Conv2d(channels, channels, 1))
            self.steps.append(lambda m, at=at, f=gate, c=module: m[at] * f(c(m[at].mean((2, 3), keepdim=True))))
            maps.append((channels, place))
            return
        else:
            other_step = self._other(kind)
            self.steps.append(lambda m, at=at: other_step(m[at]))
            maps.append((channels, fresh if kind != "scalar" else place))
            return
        self.steps.append(lambda m, at=at, module=module: module(m[at]))

    def _other(self, kind: str) -> Callable[[Tensor], Tensor]:
        draw = self.draw
        if kind == "pool":
            size, stride, padding = draw.choice(((2, 1, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1)))
            counts = draw.random() < 0.5
            return draw.choice(
                (
                    lambda x: tf.max_pool2d(x, size, stride, padding),
                    lambda x: tf.avg_pool2d(x, size, stride, padding, count_include_pad=counts),
                )
            )
        if kind == "resize":
            mode = draw.choice(("bilinear", "nearest"))
            align = draw.random() < 0.5 if mode == "bilinear" else None
            sizes = (draw.randint(3, 30), draw.randint(3, 30))
            size, factor = draw.choice(((sizes, None), (None, draw.choice((2, 3)))))
            return lambda x: interpolate(x, size, factor, mode, align)
        if kind == "pad":
            amounts = [draw.randint(0, 3) for _ in range(4)]
            value = draw.choice((0.0, 0.0, 0.0, 1.0))
            return lambda x: tf.pad(x, amounts, value=value)
        if kind == "mean":
            return lambda x: x.mean((2, 3), keepdim=True)
        number = draw.uniform(0.5, 2.0)
        return draw.choice((lambda x: x * number, lambda x: x + number, lambda x: x / number, lambda x: 1 - x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = [x]
        for step in self.steps:
            maps.append(step(maps))
        return tuple(maps[i] for i in self.results)
