"""Op `upsample_argmax`: label map at full size from logits at low resolution; the full-size logits never exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ..reference import upsample_argmax as reference
from . import _register

OP = "upsample_argmax"


def check(logits: Tensor, size: Sequence[int], align_corners: bool) -> tuple[int, int, int]:
    """Raise on anything wrong; else the output's shape."""
    _checks.image(OP, "logits", logits)
    if logits.shape[1] > 256:
        raise ValueError(f"{OP}: logits: expected at most 256 classes (labels are uint8), got {logits.shape[1]}")
    if any(s < 1 for s in size):
        raise ValueError(f"{OP}: size: expected at least 1, got {tuple(size)}")
    return logits.shape[0], size[0], size[1]


def _fake(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return logits.new_empty(check(logits, size, align_corners), dtype=torch.uint8)


_register.define(OP, check, _fake, reference.forward)
_register.add_compiled(OP, "cpu")
_register.add_compiled(OP, "cuda")
_register.add_triton(OP, OP)
