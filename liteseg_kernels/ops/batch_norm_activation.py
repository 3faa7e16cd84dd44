"""Ops of batch normalisation in training: `batch_norm_statistics`, and `batch_norm_activation`, which normalises by
them, adds a residual and activates. The two are apart so that the statistics can be combined over processes between
them (SyncBatchNorm); backward likewise sums, combines, and then computes the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import _parts as parts
from ..reference import batch_norm_activation as reference
from . import _register

OP = "batch_norm_activation"
STATISTICS = "batch_norm_statistics"


def _vector(op: str, name: str, value: Any, x: Tensor) -> None:
    """`value` is [C] of the dtype in which x's sums are kept."""
    dtype = parts.compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        wanted, got = (str(d).removeprefix("torch.") for d in (dtype, value.dtype))
        raise TypeError(f"{op}: {name}: expected {wanted} for x of {str(x.dtype).removeprefix('torch.')}, got {got}")
    if value.device != x.device:
        raise ValueError(f"{op}: {name}: expected x's device {x.device}, got {value.device}")
    if list(value.shape) != [x.shape[1]]:
        raise ValueError(f"{op}: {name}: expected [{x.shape[1]}], got {_checks.shape_text(value)}")


def check_statistics(x: Tensor) -> None:
    _checks.image(STATISTICS, "x", x)


def _fake_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = parts.compute_dtype(x.dtype)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def check(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *rest: Any,
) -> None:
    """Raise on anything wrong."""
    _checks.image(OP, "x", x)
    _vector(OP, "mean", mean, x)
    _vector(OP, "invstd", invstd, x)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            _vector(OP, name, value, x)
    _checks.optional_like(OP, "residual", residual, x, x.shape)


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, x.shape)


def _check_backward(grad: Tensor, *args: Any) -> None:
    check(*args)
    _checks.like(OP, "grad", grad, args[0], args[0].shape)


def _fake_backward(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(empty_like_format(x, x.shape) if wanted else x.new_empty(0) for wanted in args[-1])


def combine(mean: Tensor, squares: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and count over all processes of `group`, in the order of their ranks."""
    channels = mean.shape[0]
    packed = torch.cat((mean, squares, mean.new_full((1,), count)))
    # the functional collectives, which torch.compile can trace
    parts = torch.ops._c10d_functional.all_gather_into_tensor(packed, group.size(), group.group_name)
    means, deviations, counts = (
        torch.ops._c10d_functional.wait_tensor(parts).view(group.size(), -1).split([channels, channels, 1], 1)
    )
    total = counts.sum()
    overall = (means * counts).sum(0) / total
    return overall, (deviations + counts * (means - overall).square()).sum(0), total


def _sum_over(values: Tensor, group: str) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(torch.ops._c10d_functional.all_reduce(values, "sum", group))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, activation, negative_slope, group = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = activation, negative_slope
    ctx.group = group
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x = ctx.saved_tensors[0]
    channels = x.shape[1]
    count = x.numel() // channels
    with _dispatch.restored(ctx.selection):
        # the weight's and the bias's gradients stay this process's own: averaging them is the trainer's part
        total, dot = torch.ops.liteseg.batch_norm_activation_backward_reduce(grad, *ctx.saved_tensors, *ctx.options)
        if ctx.group:
            sums = _sum_over(torch.cat((total, dot, total.new_full((1,), count))), ctx.group)
            means = sums[: 2 * channels] / sums[2 * channels :]
            mean_grad, mean_dot = means[:channels], means[channels:]
        else:
            mean_grad, mean_dot = total / max(count, 1), dot / max(count, 1)
        wants_residual = ctx.needs_input_grad[5]
        # without an activation the residual's gradient is the upstream one
        mask = [ctx.needs_input_grad[0], wants_residual and ctx.options[0] != 0]
        grad_x = grad_residual = None
        if any(mask):
            grad_x, grad_residual = torch.ops.liteseg.batch_norm_activation_backward(
                grad, *ctx.saved_tensors, mean_grad, mean_dot, *ctx.options, mask
            )
    if wants_residual and not mask[1]:
        grad_residual = grad
    return (
        grad_x if mask[0] else None,
        None,
        None,
        dot if ctx.needs_input_grad[3] else None,
        total if ctx.needs_input_grad[4] else None,
        grad_residual if wants_residual else None,
        None,
        None,
        None,
    )


_register.define(STATISTICS, check_statistics, _fake_statistics, reference.statistics)
_register.define(OP, check, _fake, reference.forward)
_register.define(
    f"{OP}_backward_reduce", _check_backward, lambda grad, *args: _fake_statistics(args[0]), reference.backward_reduce
)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
for _op, _function, _image in (
    (STATISTICS, "statistics", 0),
    (OP, "forward", 0),
    (f"{OP}_backward_reduce", "backward_reduce", 1),
    (f"{OP}_backward", "backward", 1),
):
    if _op != OP:
        _register.once_differentiable(_op)
    _register.add_compiled(_op, "cpu", image=_image)
    _register.add_triton(_op, OP, _function, image=_image)
