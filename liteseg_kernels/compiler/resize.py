"""Resizing as one op: AOTAutograd takes torch's own apart into gathers, which no rule could find again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import impl, register_fake
from torch.nn import functional as tf

from .._schemas import public

_SCALES = "float? scales_h, float? scales_w"
public.define(f"resize(Tensor x, SymInt[2] size, str mode, bool align_corners, {_SCALES}) -> Tensor")


@impl(public, "resize", "CompositeExplicitAutograd")
def _resize(
    x: Tensor, size: list[int], mode: str, align_corners: bool, scales_h: float | None, scales_w: float | None
) -> Tensor:
    if mode == "bilinear":
        return torch.ops.aten.upsample_bilinear2d.default(x, size, align_corners, scales_h, scales_w)
    return torch.ops.aten.upsample_nearest2d.default(x, size, scales_h, scales_w)


@register_fake("liteseg::resize", lib=public)
def _resize_fake(
    x: Tensor, size: list[Any], mode: str, align_corners: bool, scales_h: float | None, scales_w: float | None
) -> Tensor:
    shape = (x.shape[0], x.shape[1], *size)
    return x.new_empty(shape).to(memory_format=torch._prims_common.suggest_memory_format(x))


def interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """torch.nn.functional.interpolate, by `liteseg::resize` where that covers it."""
    covered = mode in ("bilinear", "nearest") and x.dim() == 4 and (size is None) != (scale_factor is None)
    if not covered or antialias or recompute_scale_factor:
        return tf.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    scales: list[float | None] = [None, None]
    if size is None:
        factors = list(scale_factor) if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2
        # a whole factor keeps sizes exact; int() of a symbol would fix it
        size = [
            length * int(factor) if float(factor).is_integer() else math.floor(length * factor)
            for length, factor in zip(x.shape[2:], factors, strict=True)
        ]
        scales = [float(factor) for factor in factors]
    elif not isinstance(size, (tuple, list)):
        size = [size, size]
    return torch.ops.liteseg.resize(x, list(size), mode, bool(align_corners), *scales)
