"""Op `shuffle_unit`: ShuffleNet v1's unit with folded weights (Zhang et al. 2018, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import shuffle_unit as reference
from . import _register

OP = "shuffle_unit"


def check(
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
) -> tuple[int, int, int, int]:
    """Raise on anything wrong; else the output's shape. `compress_weight`'s shape gives the first convolution's
    groups; the depthwise padding is the dilation."""
    _checks.image(OP, "x", x)
    channels = x.shape[1]
    _checks.like(OP, "compress_weight", compress_weight, x, ("bottleneck", "C_in / groups", 1, 1))
    bottleneck = compress_weight.shape[0]
    # no divmod: the channels may be symbolic
    width = compress_weight.shape[1]
    if channels % width or bottleneck % (channels // width):
        raise ValueError(
            f"{OP}: compress_weight: expected [bottleneck, C_in / groups, 1, 1] with groups that divide both "
            f"C_in={channels} and the bottleneck, got {_checks.shape_text(compress_weight)}"
        )
    if groups < 1 or bottleneck % groups:
        raise ValueError(f"{OP}: groups: expected a divisor of the bottleneck {bottleneck}, got {groups}")
    _checks.like(OP, "compress_bias", compress_bias, x, (bottleneck,))
    _checks.like(OP, "depthwise_weight", depthwise_weight, x, (bottleneck, 1, 3, 3))
    _checks.like(OP, "depthwise_bias", depthwise_bias, x, (bottleneck,))
    _checks.like(OP, "expand_weight", expand_weight, x, ("C_branch", bottleneck // groups, 1, 1))
    branch = expand_weight.shape[0]
    if branch % groups:
        raise ValueError(f"{OP}: expand_weight: expected output channels divisible by {groups}, got {branch}")
    _checks.like(OP, "expand_bias", expand_bias, x, (branch,))
    height, width = _checks.convolution_size(OP, x, (3, 3), stride, dilation, dilation)
    if not concat and (list(stride) != [1, 1] or branch != channels):
        raise ValueError(
            f"{OP}: concat: expected True unless the stride is 1 and the branch has the input's {channels} channels, "
            f"got False with stride {tuple(stride)} and {branch} channels"
        )
    return x.shape[0], branch + channels if concat else branch, height, width


def _fake(x: Tensor, *args: Any) -> Tensor:
    return empty_like_format(x, check(x, *args))


def _check_backward(grad: Tensor, *args: Any) -> None:
    x, expand_weight, output = args[0], args[5], args[6]
    forward = [*args[:6], expand_weight.new_empty(expand_weight.shape[0]), *args[7:11]]
    shape = check(*forward)
    _checks.like(OP, "grad", grad, x, shape)
    _checks.like(OP, "output", output, x, shape)


def _fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, mask = args[0], args[11]
    shapes = (*(a.shape for a in args[1:6]), args[5].shape[0])
    first = empty_like_format(x, x.shape) if mask[0] else x.new_empty(0)
    return (first, *(x.new_empty(s if wanted else 0) for s, wanted in zip(shapes, mask[1:], strict=True)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6], output)
    ctx.geometry = inputs[7:]
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:7])
    with _dispatch.restored(ctx.selection):
        gradients = torch.ops.liteseg.shuffle_unit_backward(grad, *ctx.saved_tensors, *ctx.geometry, mask)
    return (*_register.given(gradients, mask), None, None, None, None)


def _cuda_limits(*args: Any) -> str | None:
    bottleneck, groups = args[1].shape[0], args[7]
    # the expansion's operands begin at multiples of 16 bytes
    padded = groups * (-(bottleneck // groups) // 8 * -8)
    if padded > 768:
        return f"the bottleneck takes {padded} channels with its groups rounded up to 8, more than the 768 that fit"
    return None


_register.define(OP, check, _fake, reference.forward)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
torch.library.register_autograd(f"liteseg::{OP}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
_register.add_compiled(OP, "cpu")
_register.add_compiled(OP, "cuda", limits=_cuda_limits)
_register.add_triton(OP, OP)
_register.add_triton(f"{OP}_backward", OP, "backward", image=1)
