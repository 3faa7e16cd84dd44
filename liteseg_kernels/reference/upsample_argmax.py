"""Reference of `upsample_argmax`: bilinear resize, then the index of the largest value along the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import _parts as parts


def forward(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    up = tf.interpolate(
        logits.to(parts.compute_dtype(logits.dtype)), list(size), mode="bilinear", align_corners=align_corners
    )
    return up.argmax(1).to(torch.uint8)
