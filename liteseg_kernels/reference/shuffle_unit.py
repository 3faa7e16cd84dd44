"""Reference of `shuffle_unit`: grouped 1x1, shuffle, depthwise, grouped 1x1, combined with the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

from .._layout import conform
from . import _parts as parts


def _shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def forward(
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    concat: bool,
) -> Tensor:
    source, w1, b1, w2, b2, w3, b3 = parts.up(
        parts.compute_dtype(x.dtype),
        *(x, compress_weight, compress_bias, depthwise_weight, depthwise_bias, expand_weight, expand_bias),
    )
    hidden = tf.relu(parts.convolution(source, w1, b1, groups=x.shape[1] // w1.shape[1]))
    hidden = parts.convolution(_shuffle(hidden, groups), w2, b2, stride, dilation, dilation, w2.shape[0])
    branch = parts.convolution(hidden, w3, b3, groups=groups)
    if concat:
        out = torch.cat((tf.avg_pool2d(source, 3, list(stride), 1), branch), 1)
    else:
        out = source + branch
    return conform(tf.relu(out).to(x.dtype), x)


def backward(
    grad: Tensor,
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    output: Tensor,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    concat: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grad, source, w1, b1, w2, b2, w3 = parts.up(
        parts.compute_dtype(x.dtype),
        *(grad, x, compress_weight, compress_bias, depthwise_weight, depthwise_bias, expand_weight),
    )
    first_groups = x.shape[1] // w1.shape[1]
    compressed = tf.relu(parts.convolution(source, w1, b1, groups=first_groups))
    shuffled = _shuffle(compressed, groups)
    filtered = parts.convolution(shuffled, w2, b2, stride, dilation, dilation, w2.shape[0])
    grad_sum = parts.activation_gradient(grad, output, parts.RELU)
    if concat:
        channels = x.shape[1]
        grad_branch = grad_sum[:, channels:]
        # each input pixel is read by the windows that cover it, all with weight 1/9: a depthwise correlation
        ninth = source.new_full((channels, 1, 3, 3), 1 / 9)
        grad_shortcut, _ = parts.convolution_gradient(
            grad_sum[:, :channels], source, ninth, stride, (1, 1), (1, 1), channels
        )
    else:
        grad_branch = grad_shortcut = grad_sum
    grad_filtered, grad_w3 = parts.convolution_gradient(grad_branch, filtered, w3, groups=groups)
    grad_shuffled, grad_w2 = parts.convolution_gradient(
        grad_filtered, shuffled, w2, stride, dilation, dilation, w2.shape[0]
    )
    # the inverse of a shuffle with g groups is a shuffle with C/g groups
    grad_compressed = _shuffle(grad_shuffled, shuffled.shape[1] // groups)
    grad_z1 = parts.activation_gradient(grad_compressed, compressed, parts.RELU)
    grad_x, grad_w1 = parts.convolution_gradient(grad_z1, source, w1, groups=first_groups)
    gradients = (
        *(grad_x + grad_shortcut, grad_w1, parts.bias_gradient(grad_z1), grad_w2, parts.bias_gradient(grad_filtered)),
        *(grad_w3, parts.bias_gradient(grad_branch)),
    )
    results = parts.masked(gradients, output_mask, x.dtype, x)
    return (conform(results[0], x), *results[1:]) if output_mask[0] else results
