"""Reference of the int8 inverted residual: the integers that every kernel of it gives, in plain PyTorch.

Maps of bytes stand for numbers on a grid: value = (byte - zero) * scale. Products are exact; a sum is scaled in
float32, rounded to the nearest whole number (ties to even) and saturated to 0..255, which is the activation too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as tf


def quantise(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    """uint8 of floating-point x: x times 1 / scale in float32, rounded, between 0 and 255; NaN is the least."""
    steps = (x.float() * (1.0 / scale.float())).nan_to_num(nan=-float("inf"))
    return (steps.clamp(-zero, 255 - zero).round() + zero).to(torch.uint8)


def dequantise(x: Tensor, scale: Tensor, zero: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return ((x.int() - zero).float() * scale.float()).to(dtype)


def _sums(x: Tensor, weight: Tensor, bias: Tensor, **geometry: int) -> Tensor:
    """int32, exactly: float64 holds every partial sum, of whole numbers below 2^53."""
    out = tf.conv2d(x.double(), weight.double(), bias.double(), **geometry)  # type: ignore[call-overload]
    return out.to(torch.int32)


def _scaled(sums: Tensor, scale: Tensor) -> Tensor:
    return sums.float() * scale.float().view(1, -1, 1, 1)


def _bytes(values: Tensor, zero: int) -> Tensor:
    return (values.round() + zero).clamp(0, 255).to(torch.uint8)


def forward(
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
    geometry = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": hidden.shape[1]}
    hidden = _bytes(_scaled(_sums(hidden, *depthwise[:2], **geometry), depthwise[2]), 0)
    out = _scaled(_sums(hidden, *project[:2]), project[2])
    if residual_scale is not None:
        out = out + centred.float() * residual_scale.float()
    return _bytes(out, out_zero)
