"""Op `inverted_residual`: MobileNetV2's block with folded weights (Sandler et al. 2018, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import inverted_residual as reference
from . import _register

OP = "inverted_residual"


def check(
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
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape. The depthwise padding is dilation * (k - 1) / 2."""
    _checks.image(OP, "x", x)
    channels = x.shape[1]
    _checks.like(OP, "depthwise_weight", depthwise_weight, x, ("hidden", 1, "kh", "kw"))
    hidden = depthwise_weight.shape[0]
    kernel = depthwise_weight.shape[2:]
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"{OP}: depthwise_weight: expected an odd kernel, got {_checks.shape_text(depthwise_weight)}")
    if expand_weight is not None:
        _checks.like(OP, "expand_weight", expand_weight, x, (hidden, channels, 1, 1))
        _checks.optional_like(OP, "expand_bias", expand_bias, x, (hidden,))
    elif expand_bias is not None:
        raise ValueError(f"{OP}: expand_bias: expected None where expand_weight is None, got a tensor")
    elif hidden != channels:
        raise ValueError(
            f"{OP}: depthwise_weight: expected [{channels}, 1, kh, kw] where expand_weight is None, "
            f"got {_checks.shape_text(depthwise_weight)}"
        )
    _checks.optional_like(OP, "depthwise_bias", depthwise_bias, x, (hidden,))
    _checks.like(OP, "project_weight", project_weight, x, ("C_out", hidden, 1, 1))
    out_channels = project_weight.shape[0]
    _checks.optional_like(OP, "project_bias", project_bias, x, (out_channels,))
    padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    height, width = _checks.convolution_size(OP, x, kernel, stride, padding, dilation)
    if residual and (list(stride) != [1, 1] or out_channels != channels):
        raise ValueError(
            f"{OP}: residual: expected stride 1 and as many output as input channels, "
            f"got stride {tuple(stride)} and {channels} -> {out_channels} channels"
        )
    return x.shape[0], out_channels, height, width


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _check_backward(grad: Tensor, *args: Any) -> None:
    forward = [*args[:6], None, *args[6:11]]
    _checks.like(OP, "grad", grad, args[0], check(*forward))


def _fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, mask = args[0], args[11]
    hidden, out_channels = args[3].shape[0], args[5].shape[0]
    shapes = (x.shape, (hidden, x.shape[1], 1, 1), hidden, args[3].shape, hidden, args[5].shape, out_channels)
    first = empty_like_format(x, x.shape) if mask[0] else x.new_empty(0)
    return (first, *(x.new_empty(s if wanted else 0) for s, wanted in zip(shapes[1:], mask[1:], strict=True)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.geometry = inputs[7:]
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:7])
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.inverted_residual_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*_register.given(gradients, mask), None, None, None, None, None)


def _cuda_limits(*args: Any) -> str | None:
    x, expand_weight, depthwise_weight = args[0], args[1], args[3]
    if expand_weight is not None and x.shape[1] > 384:
        return f"x has {x.shape[1]} channels, more than the 384 that fit shared memory"
    return _register.small_kernel(depthwise_weight)


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
_register.add_compiled(OP, "cpu")
_register.add_compiled(OP, "cuda", limits=_cuda_limits)
_register.add_triton(OP, OP)
_register.add_triton(f"{OP}_backward", OP, "backward", image=1)
