"""Op `preprocess`: uint8 pictures [N, H, W, C] to a normalised floating map [N, C, H', W'], resized on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ..reference import preprocess as reference
from . import _register

OP = "preprocess"


def check(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    """Raise on anything wrong."""
    _checks.tensor(OP, "image", image, (torch.uint8,))
    if image.dim() != 4 or image.shape[1] < 1 or image.shape[2] < 1:
        raise ValueError(f"{OP}: image: expected [H, W, C] or [N, H, W, C], got {_checks.shape_text(image)}")
    channels = image.shape[3]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{OP}: {name}: expected {channels} numbers, one a channel, got {list(values)}")
    if not all(s > 0 for s in std):
        raise ValueError(f"{OP}: std: expected positive numbers, got {list(std)}")
    if any(s < 1 for s in size):
        raise ValueError(f"{OP}: size: expected at least 1, got {tuple(size)}")
    if dtype not in _checks.FLOATING:
        raise TypeError(f"{OP}: dtype: expected a floating dtype, got {dtype}")


def _fake(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (image.shape[0], image.shape[3], *size)
    return torch.empty(shape, dtype=dtype, device=image.device, memory_format=memory_format)


_register.define(OP, check, _fake, reference.forward)
_register.add_compiled(OP, "cpu", dtype=4)
_register.add_compiled(OP, "cuda", dtype=4)
_register.add_triton(OP, OP, dtype=4)
