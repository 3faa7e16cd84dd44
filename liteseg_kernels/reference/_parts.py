"""What the reference ops are made of: convolutions and activations with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

NONE, RELU, RELU6, LEAKY_RELU = range(4)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulation: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def up(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor]:
    """The tensors in `dtype`. None passes through (typed loosely: callers know which arguments are optional)."""
    return [t if t is None else t.to(dtype) for t in tensors]  # type: ignore[misc]


def activate(z: Tensor, activation: int, negative_slope: float = 0.0) -> Tensor:
    if activation == RELU:
        return tf.relu(z)
    if activation == RELU6:
        return tf.relu6(z)
    if activation == LEAKY_RELU:
        return tf.leaky_relu(z, negative_slope)
    return z


def activation_gradient(grad: Tensor, output: Tensor, activation: int, negative_slope: float = 0.0) -> Tensor:
    """Gradient before the activation, from the activation's output; zero at the kinks, as torch has it."""
    if activation == RELU:
        return torch.where(output > 0, grad, 0)
    if activation == RELU6:
        return torch.where((output > 0) & (output < 6), grad, 0)
    if activation == LEAKY_RELU:
        return torch.where(output > 0, grad, grad * negative_slope)
    return grad


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    return tf.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)


def convolution_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, list(stride), list(padding), list(dilation), False, [0, 0], groups, [True, True, False]
    )
    return grad_x, grad_weight


def bias_gradient(grad: Tensor) -> Tensor:
    return grad.sum((0, 2, 3))


def masked(
    gradients: Sequence[Tensor | None], mask: Sequence[bool], dtype: torch.dtype, x: Tensor
) -> tuple[Tensor, ...]:
    """The gradients asked for in `dtype`, contiguous; an empty tensor in the place of the others."""
    return tuple(
        g.to(dtype).contiguous() if wanted and g is not None else x.new_empty(0)
        for g, wanted in zip(gradients, mask, strict=True)
    )
