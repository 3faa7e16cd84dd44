"""timm's padding of TensorFlow, for a graph of which the sizes are open.

timm computes it as `max((ceil(x / stride) - 1) * stride + reach - x, 0)`. With x a symbol nothing of this cancels: each
strided convolution multiplies the length of the expression of its map's size, and sympy walks all of it in every
condition on a shape (1.5 minutes for a MobileNetV3). By the remainder, which Dynamo guards, padding is a number: sizes
stay short, and the padding can go into the convolution. Sizes with other remainders get a graph of their own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def get_same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """Rows or columns to add to x of them, so that a convolution makes ceil(x / stride)."""
    reach = (kernel_size - 1) * dilation + 1
    if isinstance(x, torch.Tensor):
        beyond = x % stride
        return (reach - torch.where(beyond == 0, stride, beyond)).clamp(min=0)
    # 0 first: that a size is divisible is what makes later expressions short
    for remainder in range(stride):
        if x % stride == remainder:
            return max(reach - (remainder or stride), 0)
    raise AssertionError("a remainder is less than its divisor")


# functions that were asked for; held, so that no other takes the place of one in memory
_SEEN: set[Any] = set()


def substitute() -> None:
    """Have Dynamo trace the function above where timm's is called, if timm is imported. Untraced, timm's own runs."""
    original = getattr(sys.modules.get("timm.layers.padding"), "get_same_padding", None)
    if original is None or original in _SEEN:
        return
    _SEEN.add(original)
    try:
        torch.compiler.substitute_in_graph(original)(get_same_padding)
    except TypeError:
        # another signature, of another timm: its own is traced, which is as exact and slower to compile
        return
