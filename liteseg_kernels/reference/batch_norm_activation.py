"""Reference of `batch_norm_activation`: normalisation by given statistics, residual, activation; and the statistics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._layout import conform
from . import _parts as parts


def _column(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    source = x.to(parts.compute_dtype(x.dtype))
    count = x.numel() // x.shape[1]
    # of nothing: zeros, not the NaN of an empty mean
    mean = source.sum((0, 2, 3)) / max(count, 1)
    return mean, (source - _column(mean)).square().sum((0, 2, 3))


def _before_activation(
    x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    source, skip = parts.up(mean.dtype, x, residual)
    z = (source - _column(mean)) * _column(invstd if weight is None else invstd * weight)
    if bias is not None:
        z = z + _column(bias)
    return z if skip is None else z + skip


def forward(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
    group: str,
) -> Tensor:
    z = _before_activation(x, mean, invstd, weight, bias, residual)
    return conform(parts.activate(z, activation, negative_slope).to(x.dtype), x)


def _gradient_before_activation(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
) -> Tensor:
    # the value before the activation is computed again: keeping it would cost a map
    z = _before_activation(x, mean, invstd, weight, bias, residual)
    return parts.activation_gradient(grad.to(mean.dtype), z, activation, negative_slope)


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    grad_z = _gradient_before_activation(grad, x, mean, invstd, weight, bias, residual, activation, negative_slope)
    normalised = (x.to(mean.dtype) - _column(mean)) * _column(invstd)
    return grad_z.sum((0, 2, 3)), (grad_z * normalised).sum((0, 2, 3))


def backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean_grad: Tensor,
    mean_dot: Tensor,
    activation: int,
    negative_slope: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grad_z = _gradient_before_activation(grad, x, mean, invstd, weight, bias, residual, activation, negative_slope)
    normalised = (x.to(mean.dtype) - _column(mean)) * _column(invstd)
    scale = invstd if weight is None else invstd * weight
    grad_x = (grad_z - _column(mean_grad) - normalised * _column(mean_dot)) * _column(scale)
    # without an activation grad_z is grad itself, and an op's output must not be its input
    results = parts.masked((grad_x, grad_z.clone()), output_mask, x.dtype, x)
    of_x, of_residual = (conform(r, x) if wanted else r for r, wanted in zip(results, output_mask, strict=True))
    return of_x, of_residual
