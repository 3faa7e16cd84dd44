"""The instruction sets of x86-64 that kernels are compiled for, a later one having all of the ones before it."""

from __future__ import annotations

import torch

from liteseg_kernels import _loader

ORDER = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")
# with kernels for bfloat16 plans
BF16 = ORDER[4:]
HERE = "none" if _loader.missing("cpu") is not None else torch.ops.liteseg_cpu.isa()


def here() -> tuple[str, ...]:
    """Those of this processor."""
    return ORDER[: ORDER.index(HERE) + 1] if HERE in ORDER else ()
