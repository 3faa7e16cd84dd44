"""Reference of `depthwise_conv2d`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._layout import conform
from . import _parts as parts


def forward(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    source, taps = parts.up(parts.compute_dtype(x.dtype), x, weight)
    return conform(parts.convolution(source, taps, None, stride, padding, dilation, x.shape[1]).to(x.dtype), x)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grad, source, taps = parts.up(parts.compute_dtype(x.dtype), grad, x, weight)
    gradients = parts.convolution_gradient(grad, source, taps, stride, padding, dilation, x.shape[1])
    grad_x, grad_weight = parts.masked(gradients, output_mask, x.dtype, x)
    return conform(grad_x, x) if output_mask[0] else grad_x, grad_weight
