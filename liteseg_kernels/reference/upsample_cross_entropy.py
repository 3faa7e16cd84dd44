"""Reference of `upsample_cross_entropy`: bilinear resize, then torch.nn.functional.cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as tf

from .._layout import conform
from . import _parts as parts


def _upsampled(logits: Tensor, target: Tensor, align_corners: bool) -> Tensor:
    return tf.interpolate(
        logits.to(parts.compute_dtype(logits.dtype)), target.shape[1:], mode="bilinear", align_corners=align_corners
    )


def _class_weights(logits: Tensor, weight: Tensor | None) -> Tensor:
    dtype = parts.compute_dtype(logits.dtype)
    return logits.new_ones(logits.shape[1], dtype=dtype) if weight is None else weight.to(dtype)


def _valid_and_class(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    valid = target != ignore_index
    return valid, torch.where(valid, target, 0).long()


def loss_map(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    """Loss of every pixel, [N, H, W]; 0 where the target is `ignore_index`."""
    return tf.cross_entropy(
        _upsampled(logits, target, align_corners),
        target.long(),
        None if weight is None else _class_weights(logits, weight),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """Per image, the sum of the losses and the sum of the class weights of the valid pixels, both [N]."""
    losses = loss_map(logits, target, weight, ignore_index, label_smoothing, align_corners)
    valid, classes = _valid_and_class(target, ignore_index)
    weights = torch.where(valid, _class_weights(logits, weight)[classes], 0)
    return losses.sum((1, 2)), weights.sum((1, 2))


def backward(
    scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    """Gradient of sum(scale * loss) in the logits; `scale` is [N] (one factor an image) or [N, H, W]."""
    classes_count = logits.shape[1]
    probabilities = _upsampled(logits, target, align_corners).softmax(1)
    weights = _class_weights(logits, weight)
    valid, classes = _valid_and_class(target, ignore_index)
    one_hot = tf.one_hot(classes, classes_count).movedim(-1, 1).to(probabilities.dtype)
    grad = (1 - label_smoothing) * weights[classes].unsqueeze(1) * (probabilities - one_hot)
    if label_smoothing:
        smooth = weights.sum() * probabilities - weights.view(1, -1, 1, 1)
        grad = grad + label_smoothing / classes_count * smooth
    factor = scale.to(grad.dtype)
    factor = torch.where(valid, factor if factor.dim() == 3 else factor.view(-1, 1, 1), 0)
    grad_logits = torch.ops.aten.upsample_bilinear2d_backward(
        (grad * factor.unsqueeze(1)).contiguous(), list(target.shape[1:]), list(logits.shape), align_corners, None, None
    )
    return conform(grad_logits.to(logits.dtype), logits)
