"""Reference of `separable_conv2d`: depthwise, pointwise, bias, residual, activation."""

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
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    dtype = parts.compute_dtype(x.dtype)
    source, depthwise, pointwise, shift, skip = parts.up(dtype, x, depthwise_weight, pointwise_weight, bias, residual)
    between = parts.convolution(source, depthwise, None, stride, padding, dilation, x.shape[1])
    z = parts.convolution(between, pointwise, shift)
    if skip is not None:
        z = z + skip
    return conform(parts.activate(z, activation, negative_slope).to(x.dtype), x)


def backward(
    grad: Tensor,
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    dtype = parts.compute_dtype(x.dtype)
    grad, source, depthwise, pointwise = parts.up(dtype, grad, x, depthwise_weight, pointwise_weight)
    grad_z = parts.activation_gradient(grad, output, activation, negative_slope)
    # the depthwise map is computed again: keeping it would cost as much memory as the fusion saves
    between = parts.convolution(source, depthwise, None, stride, padding, dilation, x.shape[1])
    grad_between, grad_pointwise = parts.convolution_gradient(grad_z, between, pointwise)
    grad_x, grad_depthwise = parts.convolution_gradient(
        grad_between, source, depthwise, stride, padding, dilation, x.shape[1]
    )
    # without an activation grad_z is grad itself, and an op's output must not be its input
    gradients = (grad_x, grad_depthwise, grad_pointwise, parts.bias_gradient(grad_z), grad_z.clone())
    results = list(parts.masked(gradients, output_mask, x.dtype, x))
    for index, like in ((0, x), (4, output)):
        if output_mask[index]:
            results[index] = conform(results[index], like)
    return tuple(results)
