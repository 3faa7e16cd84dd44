"""Reference of `inverted_residual`: expand, activation, depthwise, activation, project, residual."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._layout import conform
from . import _parts as parts


def _padding(weight: Tensor, dilation: Sequence[int]) -> list[int]:
    return [d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True)]


def forward(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    residual: bool,
) -> Tensor:
    source, w1, b1, w2, b2, w3, b3 = parts.up(
        parts.compute_dtype(x.dtype),
        *(x, expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias),
    )
    hidden = source
    if w1 is not None:
        hidden = parts.activate(parts.convolution(source, w1, b1), activation, negative_slope)
    hidden = parts.convolution(hidden, w2, b2, stride, _padding(w2, dilation), dilation, w2.shape[0])
    out = parts.convolution(parts.activate(hidden, activation, negative_slope), w3, b3)
    if residual:
        out = out + source
    return conform(out.to(x.dtype), x)


def backward(
    grad: Tensor,
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    residual: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grad, source, w1, b1, w2, b2, w3 = parts.up(
        parts.compute_dtype(x.dtype),
        *(grad, x, expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight),
    )
    padding = _padding(w2, dilation)
    expanded = source
    if w1 is not None:
        expanded = parts.activate(parts.convolution(source, w1, b1), activation, negative_slope)
    filtered = parts.activate(
        parts.convolution(expanded, w2, b2, stride, padding, dilation, w2.shape[0]), activation, negative_slope
    )
    grad_filtered, grad_w3 = parts.convolution_gradient(grad, filtered, w3)
    grad_z2 = parts.activation_gradient(grad_filtered, filtered, activation, negative_slope)
    grad_expanded, grad_w2 = parts.convolution_gradient(grad_z2, expanded, w2, stride, padding, dilation, w2.shape[0])
    grad_w1 = grad_b1 = None
    grad_x = grad_expanded
    if w1 is not None:
        grad_z1 = parts.activation_gradient(grad_expanded, expanded, activation, negative_slope)
        grad_x, grad_w1 = parts.convolution_gradient(grad_z1, source, w1)
        grad_b1 = parts.bias_gradient(grad_z1)
    if residual:
        grad_x = grad_x + grad
    gradients = (
        *(grad_x, grad_w1, grad_b1, grad_w2, parts.bias_gradient(grad_z2), grad_w3, parts.bias_gradient(grad)),
    )
    results = parts.masked(gradients, output_mask, x.dtype, x)
    return (conform(results[0], x), *results[1:]) if output_mask[0] else results
