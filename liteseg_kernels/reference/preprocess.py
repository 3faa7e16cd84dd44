"""Reference of `preprocess`: uint8 picture -> bilinear resize -> normalised floating map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf


def forward(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x = image.permute(0, 3, 1, 2).to(compute)
    if list(x.shape[2:]) != list(size):
        x = tf.interpolate(x, list(size), mode="bilinear", align_corners=False)
    shape = (1, -1, 1, 1)
    offset, spread = (torch.tensor(v, dtype=compute, device=x.device).view(shape) for v in (mean, std))
    out = (x / 255 - offset) / spread
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(out.shape, dtype=dtype, device=x.device, memory_format=memory_format).copy_(out)
