"""The backward of inverted_residual, composed of single layers; see inverted_residual.py.

Temporaries: both hidden maps again, in float32 (see _layers.py), and their gradients in T, all channels last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._layout import empty_like_format
from . import _layers as layers
from ._common import guard
from ._separable_backward import bias_gradient, depthwise_input_gradient, depthwise_weight_gradient


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
    n, c, h, w = x.shape
    m, _, kh, kw = depthwise_weight.shape
    o, ho, wo = grad.shape[1:]
    geometry = (stride, [dilation[0] * (kh - 1) // 2, dilation[1] * (kw - 1) // 2], dilation)
    act = (activation, negative_slope)
    shapes = ((m, c, 1, 1), (m,), depthwise_weight.shape, (m,), project_weight.shape, (o,))
    grad_x = empty_like_format(x, x.shape) if output_mask[0] else x.new_empty(0)
    results = (grad_x, *(x.new_empty(s if wanted else 0) for s, wanted in zip(shapes, output_mask[1:], strict=True)))
    if n == 0:
        for result in results:
            result.zero_()
        return results
    _, grad_expand, grad_expand_bias, grad_depthwise, grad_depthwise_bias, grad_project, grad_project_bias = results

    with guard(x):
        if output_mask[6]:
            bias_gradient(grad, grad, grad_project_bias, 0, 0.0)
        if not any(output_mask[:6]):
            return results
        expanded = x
        if expand_weight is not None:
            expanded = layers.nhwc(x, (n, m, h, w), torch.float32)
            layers.pointwise(x, expand_weight, expand_bias, expanded, 1, *act)
        filtered = layers.nhwc(x, (n, m, ho, wo), torch.float32)
        layers.depthwise(expanded, depthwise_weight, depthwise_bias, filtered, *geometry, *act)
        if output_mask[5]:
            layers.pointwise_weight_gradient(grad, None, filtered, grad_project, 1, 0, 0.0)
        grad_filtered = layers.nhwc(x, filtered.shape)
        layers.pointwise_input_gradient(grad, None, project_weight, None, filtered, grad_filtered, 1, *act)
        if output_mask[4]:
            bias_gradient(grad_filtered, grad_filtered, grad_depthwise_bias, 0, 0.0)
        hidden = grad_filtered.permute(0, 2, 3, 1)
        if output_mask[3]:
            depthwise_weight_gradient(hidden, expanded, depthwise_weight, grad_depthwise, *geometry)
        if not any(output_mask[:3]):
            return results
        if expand_weight is None:
            depthwise_input_gradient(hidden, depthwise_weight, grad_x, *geometry)
            return (grad_x.add_(grad), *results[1:]) if residual else results
        grad_expanded = layers.nhwc(x, expanded.shape)
        depthwise_input_gradient(hidden, depthwise_weight, grad_expanded, *geometry)
        if output_mask[2]:
            bias_gradient(grad_expanded, expanded, grad_expand_bias, *act)
        if output_mask[1]:
            layers.pointwise_weight_gradient(grad_expanded, expanded, x, grad_expand, 1, *act)
        if output_mask[0]:
            layers.pointwise_input_gradient(
                grad_expanded, expanded, expand_weight, grad if residual else None, None, grad_x, 1, *act
            )
    return results
