"""Ops `upsample_cross_entropy` and `upsample_cross_entropy_map`: cross-entropy of bilinearly resized logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _dispatch
from .._layout import empty_like_format
from .._schemas import public
from ..reference import _parts
from ..reference import upsample_cross_entropy as reference
from . import _register

OP = "upsample_cross_entropy"
MAP = "upsample_cross_entropy_map"
TARGETS = (torch.int64, torch.int32, torch.uint8)


def check(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> None:
    """Raise on anything wrong that shapes and dtypes show."""
    _checks.image(OP, "logits", logits)
    _checks.tensor(OP, "target", target, TARGETS)
    if target.dim() != 3 or target.shape[0] != logits.shape[0] or target.shape[1] < 1 or target.shape[2] < 1:
        raise ValueError(f"{OP}: target: expected [{logits.shape[0]}, H, W], got {_checks.shape_text(target)}")
    if target.device != logits.device:
        raise ValueError(f"{OP}: target: expected logits's device {logits.device}, got {target.device}")
    if weight is not None:
        _checks.tensor(OP, "weight", weight)
        if tuple(weight.shape) != (logits.shape[1],):
            raise ValueError(f"{OP}: weight: expected [{logits.shape[1]}], got {_checks.shape_text(weight)}")
        if weight.device != logits.device:
            raise ValueError(f"{OP}: weight: expected logits's device {logits.device}, got {weight.device}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{OP}: label_smoothing: expected 0..1, got {label_smoothing}")


def check_values(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, *rest: Any) -> None:
    """Raise on targets that are no class. Only where that needs no wait for a device: elsewhere the kernels make the
    loss NaN."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    classes = logits.shape[1]
    outside = (target != ignore_index) & ((target < 0) | (target >= classes))
    if outside.any():
        found = torch.unique(target[outside])[:8].tolist()
        raise ValueError(f"{OP}: target: expected classes 0..{classes - 1} or ignore_index {ignore_index}, got {found}")


def _fake(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    dtype = _parts.compute_dtype(logits.dtype)
    return logits.new_empty(logits.shape[0], dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


def _fake_map(logits: Tensor, target: Tensor, *args: Any) -> Tensor:
    return logits.new_empty(target.shape, dtype=_parts.compute_dtype(logits.dtype))


def _check_backward(scale: Tensor, logits: Tensor, target: Tensor, *args: Any) -> None:
    check(logits, target, *args)
    if scale.shape not in (target.shape, target.shape[:1]):
        raise ValueError(
            f"{OP}: grad: expected {list(target.shape[:1])} or {list(target.shape)}, got {_checks.shape_text(scale)}"
        )


def _fake_backward(scale: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return empty_like_format(logits, logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, target, weight, *ctx.settings = inputs
    ctx.save_for_backward(logits, target, weight)
    ctx.selection = _dispatch.selection()


def _backward(ctx: Any, grad: Tensor, *grad_weights: Tensor) -> tuple[Any, ...]:
    # the second output counts pixels: it does not depend on the logits
    with _dispatch.restored(ctx.selection):
        grad_logits = torch.ops.liteseg.upsample_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return grad_logits, None, None, None, None, None


_register.define(OP, check, _fake, reference.forward, check_values)
_register.define(MAP, check, _fake_map, reference.loss_map, check_values)
_register.define(f"{OP}_backward", _check_backward, _fake_backward, reference.backward)
for _op in (OP, MAP):
    torch.library.register_autograd(f"liteseg::{_op}", _backward, setup_context=_setup_context, lib=public)
_register.once_differentiable(f"{OP}_backward")
for _op, _function, _image in ((OP, "forward", 0), (f"{OP}_backward", "backward", 1)):
    _register.add_compiled(_op, "cpu", image=_image)
    _register.add_triton(_op, OP, _function, image=_image)
_register.add_compiled(MAP, "cpu")
_register.add_triton(MAP, OP, "loss_map")
