"""Compiles the CUDA kernels with the C++ compiler against the emulation headers beside this file, and loads them.

The library serves the ops of `torch.ops.liteseg_cuda` on CPU tensors, so backend "cuda" runs in this process.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

import liteseg_kernels  # noqa: F401  # defines the ops

ROOT = Path(__file__).resolve().parent.parent.parent
HEADERS = Path(__file__).resolve().parent / "include"
TORCH = Path(torch.__file__).resolve().parent


def _command(sources: list[Path], target: Path) -> list[str]:
    include = [f"-I{HEADERS}", f"-I{ROOT / 'csrc'}", "-isystem", str(TORCH / "include")]
    defines = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    link = ["-shared", "-o", str(target), f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
    return ["g++", *flags, *defines, *include, "-x", "c++", *map(str, sources), "-x", "none", *link]


@functools.cache
def load() -> str | None:
    """Build (once for each state of the sources) and load the emulated kernels; the reason where that cannot be."""
    if shutil.which("g++") is None:
        return "no g++ to compile the CUDA kernels for the CPU"
    sources = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
    state = hashlib.sha256(f"{torch.__version__} {TORCH}".encode())
    for path in sorted([*sources, *(ROOT / "csrc/common").glob("*.h"), *HEADERS.rglob("*.*h")]):
        state.update(path.read_bytes())
    library = ROOT / "build/emulator" / f"liteseg_cuda_on_cpu_{state.hexdigest()[:16]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run(_command(sources, partial), check=True)
        os.replace(partial, library)
    torch.ops.load_library(str(library))
    return None
