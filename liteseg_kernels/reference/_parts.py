"""What the reference ops are made of: convolutions and activations with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

from .. import activations

RELU = activations.index_of("relu")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulation: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def up(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor]:
    """The tensors in `dtype`. None passes through (typed loosely: callers know which arguments are optional)."""
    return [t if t is None else t.to(dtype) for t in tensors]  # type: ignore[misc]


def activate(z: Tensor, activation: int, negative_slope: float = 0.0) -> Tensor:
    return activations.TABLE[activation].apply(z, negative_slope)


def activation_gradient(grad: Tensor, output: Tensor, activation: int, negative_slope: float = 0.0) -> Tensor:
    """Gradient before the activation, from the activation's output; zero at the kinks, as torch has it."""
    return activations.TABLE[activation].gradient(grad, output, negative_slope)


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
