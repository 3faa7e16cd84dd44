"""The numbers that programs are written with: the engine's own, asked for by name.

They stand in csrc/engine (plan/program.h and the headers of kernels); the library that will run a program is the one
that says how it is written.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def _numbers() -> dict[str, int]:
    lines = torch.ops.liteseg_cpu.program_constants().splitlines()
    return {name: int(value) for name, value in (line.split("=") for line in lines)}


def constant(name: str) -> int:
    """A number by its name, `plan.stem` or `most.branches`. Only where the compiled CPU kernels are loaded."""
    return _numbers()[name]


def activation(name: str | None) -> int:
    """The number of an activation, None being none."""
    return constant(f"activation.{name or 'none'}")
