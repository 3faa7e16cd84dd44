"""Autocast rules of the ops, in one table.

`CAST` ops run in autocast's dtype, like convolutions. `PROMOTE` ops run in the widest of their inputs' dtypes, like
torch.cat. The remaining ops take the logits as they come: they accumulate in float32 whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from ._schemas import public

CAST = (
    *("separable_conv2d", "depthwise_conv2d", "inverted_residual", "shuffle_unit", "daspp"),
    *("separable_conv2d_classifier", "upsample_concat_separable_conv2d"),
)
PROMOTE = ("upsample_concat",)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    if isinstance(value, (list, tuple)):
        return [_cast(v, dtype) for v in value]
    return value


def _autocast_dtype(device: str, args: tuple[Any, ...]) -> torch.dtype:
    return torch.get_autocast_dtype(device)


def _widest_dtype(device: str, args: tuple[Any, ...]) -> torch.dtype:
    return reduce(torch.promote_types, (a.dtype for a in args if isinstance(a, torch.Tensor)))


def _rule(op: str, device: str, choose: Callable[[str, tuple[Any, ...]], torch.dtype]) -> Callable[..., Any]:
    overload = getattr(torch.ops.liteseg, op).default

    def run(*args: Any) -> Any:
        dtype = choose(device, args)
        with torch.autocast(device, enabled=False):
            return overload(*(_cast(a, dtype) for a in args))

    return run


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    for _ops, _choose in ((CAST, _autocast_dtype), (PROMOTE, _widest_dtype)):
        for _op in _ops:
            public.impl(_op, _rule(_op, _device, _choose), _key)
