"""Reference of `upsample_concat_separable_conv2d`: bilinear resize, concatenation, separable convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._layout import conform
from . import _parts as parts
from . import separable_conv2d, upsample_concat


def forward(
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
) -> Tensor:
    dtype = parts.compute_dtype(x.dtype)
    low, high, depthwise, pointwise, shift = parts.up(dtype, x, skip, depthwise_weight, pointwise_weight, bias)
    whole = upsample_concat.forward(low, high, align_corners)
    geometry = (stride, padding, dilation, activation, negative_slope)
    out = separable_conv2d.forward(whole, depthwise, pointwise, shift, None, *geometry)
    return conform(out.to(x.dtype), skip)


def backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    dtype = parts.compute_dtype(x.dtype)
    grad, low, high, depthwise, pointwise = parts.up(dtype, grad, x, skip, depthwise_weight, pointwise_weight)
    whole = upsample_concat.forward(low, high, align_corners)
    geometry = (stride, padding, dilation, activation, negative_slope)
    maps = output_mask[0] or output_mask[1]
    grad_whole, *weights, _ = separable_conv2d.backward(
        grad, whole, depthwise, pointwise, output, *geometry, (maps, *output_mask[2:], False)
    )
    grads = upsample_concat.backward(grad_whole, x.shape[2:], x.shape[1], align_corners) if maps else (None, None)
    results = list(parts.masked((*grads, *weights), output_mask, x.dtype, x))
    for index in (0, 1):
        if output_mask[index]:
            results[index] = conform(results[index], skip)
    return tuple(results)
