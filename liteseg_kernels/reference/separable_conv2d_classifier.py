"""Reference of `separable_conv2d_classifier`: depthwise, pointwise, bias, activation, 1x1 classifier with its bias."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._layout import conform
from . import _parts as parts


def forward(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    classifier_weight: Tensor,
    classifier_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    weights = (depthwise_weight, pointwise_weight, bias, classifier_weight, classifier_bias)
    source, depthwise, pointwise, shift, classifier, last = parts.up(parts.compute_dtype(x.dtype), x, *weights)
    between = parts.convolution(source, depthwise, None, stride, padding, dilation, x.shape[1])
    hidden = parts.activate(parts.convolution(between, pointwise, shift), activation, negative_slope)
    return conform(parts.convolution(hidden, classifier, last).to(x.dtype), x)
