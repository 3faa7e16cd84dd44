"""Argument checks shared by the ops, their fakes and the functional forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import activations

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def shape_text(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def activation_index(op: str, activation: str | None) -> int:
    return activations.index_of(activation, f"{op}: activation")


def number(op: str, argument: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{op}: {argument}: expected a number, got {value!r}")
    return value


def integer(op: str, argument: str, value: Any) -> Any:
    # sizes and counts may be symbolic under torch.compile
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {argument}: expected an int, got {value!r}")
    return value


def sequence(op: str, argument: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{op}: {argument}: expected a list or tuple, got {type(value).__name__}")
    return value


def flag(op: str, argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {argument}: expected True or False, got {value!r}")
    return value


def pair(op: str, argument: str, value: int | Sequence[int], minimum: int) -> list[int]:
    if not isinstance(value, (int, torch.SymInt, Sequence)) or isinstance(value, (bool, str)):
        raise TypeError(f"{op}: {argument}: expected ints, got {value!r}")
    values = list(value) if isinstance(value, Sequence) else [value, value]
    if len(values) != 2:
        raise ValueError(f"{op}: {argument}: expected an int or a pair of ints, got {value!r}")
    for v in values:
        # a size may be symbolic under torch.compile
        if isinstance(v, bool) or not isinstance(v, (int, torch.SymInt)):
            raise TypeError(f"{op}: {argument}: expected ints, got {value!r}")
        if v < minimum:
            raise ValueError(f"{op}: {argument}: expected at least {minimum}, got {value!r}")
    return values


def tensor(op: str, argument: str, value: Any, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {argument}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{op}: {argument}: expected dtype {_names(dtypes)}, got {_names([value.dtype])}")


def tensors(op: str, optional: Sequence[str] = (), /, **values: Any) -> None:
    """Raise unless all are tensors, or None where allowed: the dispatcher would refuse them in its own words."""
    for argument, value in values.items():
        if not isinstance(value, Tensor) and not (value is None and argument in optional):
            raise TypeError(f"{op}: {argument}: expected a tensor, got {type(value).__name__}")


def image(op: str, argument: str, value: Any, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    tensor(op, argument, value, dtypes)
    if value.dim() != 4:
        raise ValueError(f"{op}: {argument}: expected [N, C, H, W], got {shape_text(value)}")
    if value.shape[1] < 1:
        raise ValueError(f"{op}: {argument}: expected at least one channel, got {shape_text(value)}")
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(f"{op}: {argument}: expected height and width of at least 1, got {shape_text(value)}")


def like(op: str, argument: str, value: Any, x: Tensor, shape: Sequence[int | str], reference: str = "x") -> None:
    """`value` is a tensor of x's dtype and device and of `shape`, in which a name stands for any size of at least 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {argument}: expected a tensor, got {type(value).__name__}")
    if value.dtype != x.dtype:
        raise TypeError(
            f"{op}: {argument}: expected {reference}'s dtype {_names([x.dtype])}, got {_names([value.dtype])}"
        )
    if value.device != x.device:
        raise ValueError(f"{op}: {argument}: expected {reference}'s device {x.device}, got {value.device}")
    fits = value.dim() == len(shape) and all(
        have >= 1 if isinstance(want, str) else have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(s) for s in shape)
        raise ValueError(f"{op}: {argument}: expected [{wanted}], got {shape_text(value)}")


def optional_like(op: str, argument: str, value: Any, x: Tensor, shape: Sequence[int | str]) -> None:
    if value is not None:
        like(op, argument, value, x, shape)


def convolution_size(
    op: str,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    argument: str = "x",
) -> tuple[int, int]:
    """Output height and width of a convolution, by torch.nn.Conv2d's rule."""
    sizes = []
    for axis, name in enumerate(("height", "width")):
        extent = x.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        if extent < 0:
            raise ValueError(
                f"{op}: {argument}: expected a {name} of at least the kernel's extent "
                f"{dilation[axis] * (kernel[axis] - 1) + 1} less twice the padding {padding[axis]}, "
                f"got {shape_text(x)}"
            )
        sizes.append(extent // stride[axis] + 1)
    return sizes[0], sizes[1]
