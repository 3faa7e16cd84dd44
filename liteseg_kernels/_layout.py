"""The memory format of an op's output: that of its input. One rule for fakes, references and kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def empty_like_format(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A fresh tensor of `shape` in x's memory format (NCHW-contiguous or channels_last)."""
    return torch.empty(tuple(shape), dtype=dtype or x.dtype, device=x.device, memory_format=suggest_memory_format(x))


def conform(y: Tensor, x: Tensor) -> Tensor:
    """y's values with the strides that `empty_like_format(x, y.shape)` has, copied only where they differ."""
    n, c, h, w = y.shape
    if suggest_memory_format(x) == torch.channels_last:
        strides = (h * w * c, 1, w * c, c)
    else:
        strides = (c * h * w, h * w, w, 1)
    if y.stride() == strides:
        return y
    return empty_like_format(x, y.shape, y.dtype).copy_(y)
