"""Reference of `upsample_concat`: bilinear resize, then concatenation along the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

from .._layout import conform
from . import _parts as parts


def forward(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    up = tf.interpolate(
        x.to(parts.compute_dtype(x.dtype)), skip.shape[2:], mode="bilinear", align_corners=align_corners
    )
    return conform(torch.cat((up.to(x.dtype), skip), 1), skip)


def backward(grad: Tensor, size: Sequence[int], channels: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    n, _, height, width = grad.shape
    upper = grad[:, :channels].to(parts.compute_dtype(grad.dtype))
    grad_x = torch.ops.aten.upsample_bilinear2d_backward(
        upper.contiguous(), [height, width], [n, channels, *size], align_corners, None, None
    )
    return conform(grad_x.to(grad.dtype), grad), conform(grad[:, channels:].clone(), grad)
