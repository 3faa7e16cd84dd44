"""The worlds that one parity suite runs in: each backend where it can be checked, with a reason where it cannot.

interpreter   Triton kernels on CPU tensors, in Triton's interpreter under `tests.interpreter_shim`
emulator      CUDA kernels on CPU tensors, compiled against the emulation headers of tests/emulator
gpu           whatever the library prefers on a CUDA device
gpu-triton    Triton kernels on a CUDA device
gpu-cuda      CUDA kernels on a CUDA device
cpu           the compiled CPU kernels
reference     plain PyTorch, in float64 too

    with world("interpreter") as here:
        if not here.available:
            pytest.skip(here.reason)
        ...  # liteseg_kernels.functional runs here.backend, strictly, on here.device
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

HALF_TOO = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class World:
    """Where a test runs: the backend to ask for, the device and dtypes of its tensors, and why not if it cannot."""

    name: str
    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    reason: str = ""

    @property
    def available(self) -> bool:
        return not self.reason


def _interpreted() -> bool:
    """Whether triton (which decides at its import) runs kernels in its interpreter in this process."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.cdiv, InterpretedFunction)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _interpreter_missing() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    with _environment("TRITON_INTERPRET", "1"):
        if not _interpreted():
            return "triton was imported without TRITON_INTERPRET=1 in this process"
    return ""


def _gpu_missing() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1" or ("triton" in sys.modules and _interpreted()):
        return "this process interprets Triton kernels: run the gpu tests alone, with -m gpu"
    return ""


def _cpu_missing() -> str:
    return importlib.import_module("liteseg_kernels._loader").missing("cpu") or ""


def _emulator_missing() -> str:
    return importlib.import_module("tests.emulator.build").load() or ""


WORLDS = {
    "interpreter": ("triton", "cpu", HALF_TOO, _interpreter_missing),
    "emulator": ("cuda", "cpu", HALF_TOO, _emulator_missing),
    "gpu": ("auto", "cuda", HALF_TOO, _gpu_missing),
    "gpu-triton": ("triton", "cuda", HALF_TOO, _gpu_missing),
    "gpu-cuda": ("cuda", "cuda", HALF_TOO, _gpu_missing),
    "cpu": ("cpu", "cpu", HALF_TOO, _cpu_missing),
    "reference": ("reference", "cpu", (*HALF_TOO, torch.float64), lambda: ""),
}


def find(name: str) -> World:
    """The world called `name`, without entering it."""
    if name not in WORLDS:
        raise ValueError(f"world: name: expected one of {', '.join(WORLDS)}, got {name!r}")
    backend, device, dtypes, missing = WORLDS[name]
    return World(name, backend, device, dtypes, missing())


def _import_kernels() -> None:
    # imported later, without TRITON_INTERPRET, they would be compiled ones beside an interpreted triton
    package: Any = importlib.import_module("liteseg_kernels.triton")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


@contextlib.contextmanager
def world(name: str) -> Iterator[World]:
    """Enter a world: inside, the thread's ops run its backend, strictly. Without effect where it is not available."""
    here = find(name)
    with contextlib.ExitStack() as stack:
        if here.available:
            if name == "interpreter":
                stack.enter_context(_environment("TRITON_INTERPRET", "1"))
                from tests import interpreter_shim

                interpreter_shim.install()
                _import_kernels()
            kernels: Any = importlib.import_module("liteseg_kernels")
            stack.enter_context(kernels.use_backend(here.backend, strict=here.backend != "auto"))
        yield here
