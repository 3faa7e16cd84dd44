"""References of the layers in int8: the integers that every kernel of them gives, in plain PyTorch.

Maps of bytes stand for numbers on a grid: value = (byte - zero) * scale. Products are exact; a sum is scaled in
float32, rounded to the nearest whole number (ties to even) and saturated to 0..255, which is the activation too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf


def quantise(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    """uint8 of floating-point x: x times 1 / scale in float32, rounded, between 0 and 255; NaN is the least."""
    steps = (x.float() * (1.0 / scale.float())).nan_to_num(nan=-float("inf"))
    return (steps.clamp(-zero, 255 - zero).round() + zero).to(torch.uint8)


def dequantise(x: Tensor, scale: Tensor, zero: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return ((x.int() - zero).float() * scale.float()).to(dtype)


def _sums(x: Tensor, weight: Tensor, bias: Tensor, **geometry: Any) -> Tensor:
    """int32, exactly: float64 holds every partial sum, of whole numbers below 2^53."""
    out = tf.conv2d(x.double(), weight.double(), bias.double(), **geometry)
    return out.to(torch.int32)


def _scaled(sums: Tensor, scale: Tensor) -> Tensor:
    return sums.float() * scale.float().view(1, -1, 1, 1)


def _bytes(values: Tensor, zero: int) -> Tensor:
    return (values.round() + zero).clamp(0, 255).to(torch.uint8)


def inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, Tensor, Tensor],
    depthwise: tuple[Tensor, Tensor, Tensor],
    project: tuple[Tensor, Tensor, Tensor],
    *,
    stride: int,
    dilation: int,
    in_zero: int,
    out_zero: int,
    residual_scale: Tensor | None,
) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C', H', W'], 3x3 with padding as the dilation.

    Args:
        expand, depthwise, project: weight (int8, as conv2d takes it), bias (int32, in steps of the sums), and what sums
            are multiplied by for steps of the result (float32, one a channel).
        residual_scale: of x in steps of the result, at most 16 significant bits; None for a block that does not add x.
    """
    centred = x.int() - in_zero
    hidden = _bytes(_scaled(_sums(centred, *expand[:2]), expand[2]), 0)
    geometry: dict[str, Any] = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": hidden.shape[1]}
    hidden = _bytes(_scaled(_sums(hidden, *depthwise[:2], **geometry), depthwise[2]), 0)
    out = _scaled(_sums(hidden, *project[:2]), project[2])
    if residual_scale is not None:
        out = out + centred.float() * residual_scale.float()
    return _bytes(out, out_zero)


def pointwise(x: Tensor, conv: tuple[Tensor, Tensor, Tensor], in_zero: int) -> Tensor:
    """1x1 convolution, uint8 to uint8 with the zero point 0: saturation is a ReLU. `conv` as above."""
    return _bytes(_scaled(_sums(x.int() - in_zero, *conv[:2]), conv[2]), 0)


def separable(
    x: Tensor, depthwise: tuple[Tensor, Tensor, Tensor], pointwise: tuple[Tensor, Tensor, Tensor], zero: int
) -> Tensor:
    """3x3 separable convolution, uint8 to uint8, both with the zero point 0; `zero` is that of the map between, which
    the bias of `depthwise` adds."""
    between = _bytes(_scaled(_sums(x, *depthwise[:2], padding=1, groups=x.shape[1]), depthwise[2]), 0)
    return _bytes(_scaled(_sums(between.int() - zero, *pointwise[:2]), pointwise[2]), 0)


class Branch(NamedTuple):
    """An atrous branch: its two convolutions in int8, as above; the second one's sums are scaled to numbers. `zero` is
    the zero point between them, which the first one's bias adds. Then the weights of its second part, in float32."""

    rate: int
    depthwise: tuple[Tensor, Tensor, Tensor]
    pointwise: tuple[Tensor, Tensor, Tensor]
    zero: int
    deep_depthwise: Tensor
    deep_pointwise: Tensor
    deep_bias: Tensor


def daspp(
    x: Tensor,
    scale: Tensor,
    direct: tuple[Tensor, Tensor, Tensor],
    branches: Sequence[Branch],
    pool_weight: Tensor,
    pool_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
) -> Tensor:
    """float32 [N, F, H, W] of bytes with the zero point 0, as `reference.daspp` with a direct weight and second
    convolutions; kernels add up the sums of four groups of channels in float32."""
    maps = []
    for branch in branches:
        geometry: dict[str, Any] = {"padding": branch.rate, "dilation": branch.rate, "groups": x.shape[1]}
        between = _bytes(_scaled(_sums(x, *branch.depthwise[:2], **geometry), branch.depthwise[2]), 0)
        z = _scaled(_sums(between.int() - branch.zero, *branch.pointwise[:2]), branch.pointwise[2])
        z = tf.conv2d(z, branch.deep_depthwise, padding=1, groups=z.shape[1])
        maps.append(tf.relu(tf.conv2d(z, branch.deep_pointwise, branch.deep_bias)))
    mean = x.float().mean((2, 3), keepdim=True) * scale
    pooled = tf.relu(tf.conv2d(mean, pool_weight, pool_bias))
    filters = len(pool_weight)
    out = tf.conv2d(torch.cat(maps, 1), project_weight[:, :-filters], project_bias)
    out = out + tf.conv2d(pooled, project_weight[:, -filters:])
    return tf.relu(out + _scaled(_sums(x, *direct[:2]), direct[2]))
