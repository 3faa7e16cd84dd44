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
