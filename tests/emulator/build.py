"""Compiles the CUDA kernels with the C++ compiler against the emulation headers beside this file, and loads them.

The library serves the ops of `torch.ops.liteseg_cuda` on CPU tensors, so backend "cuda" runs in this process. It is a
Python module too, with the emulator's own controls (`controls`): the schedule, the poison, the counters.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import liteseg_kernels  # noqa: F401  # defines the ops

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
HEADERS = HERE / "include"
FOLDER = ROOT / "build/emulator"
TORCH = Path(torch.__file__).resolve().parent
# tests/coverage counts the branches taken; functions are counted on their own only where they are not inlined before
COVERAGE = ("-O1", "--coverage", "-fprofile-update=atomic", "-fno-early-inlining", "-DLITESEG_COVERAGE")
SANITIZE = ("-fsanitize=address", "-fno-omit-frame-pointer", "-DLITESEG_EMULATOR_ASAN")


def _flags(csrc: Path) -> list[str]:
    import pybind11

    include = [f"-I{HEADERS}", f"-I{csrc}", f"-I{csrc / 'cuda'}"]
    # torch carries a pybind11 too, at times an older one that refuses to compile
    include += ["-isystem", pybind11.get_include(), "-isystem", str(TORCH / "include")]
    include += ["-isystem", sysconfig.get_path("include")]
    defines = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    # nothing built here leaves this machine
    warnings = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    return ["-O2", "-march=native", "-std=c++17", "-fPIC", "-fvisibility=hidden", *warnings, *defines, *include]


def _digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*.*h")):
        # the CPU engine is compiled with none of this
        if "engine" not in path.parts:
            state.update(path.read_bytes())
    return state.hexdigest()


def compile_module(
    name: str, sources: Sequence[Path], extra: Sequence[str] = (), *, ops: bool = True, csrc: Path = ROOT / "csrc"
) -> Path:
    """The shared library of `sources`, the emulator and its controls, importable as `name`; only what changed is
    compiled, by one process at a time. Without `ops` it needs no torch. `csrc` holds the kernels' headers."""
    if os.environ.get("LITESEG_COVERAGE"):
        extra = (*extra, *COVERAGE)
    FOLDER.mkdir(parents=True, exist_ok=True)
    emulated, kernels = _digest(HEADERS), _digest(csrc)

    def build(source: Path) -> Path:
        # where the kernels' headers lie makes no difference to what does not include them
        ours = source.name in ("emulator.cpp", "controls.cpp")
        flags = [flag for flag in _flags(csrc) if not (ours and flag.startswith(f"-I{csrc}"))]
        state = hashlib.sha256("\n".join([torch.__version__, *flags, *extra, emulated]).encode())
        state.update(b"" if ours else kernels.encode())
        state.update(source.read_bytes())
        if source.name == "controls.cpp":
            state.update(name.encode())
        target = FOLDER / f"{source.stem}_{state.hexdigest()[:16]}.o"
        if not target.is_file():
            partial = target.with_suffix(f".{os.getpid()}")
            define = [f"-DLITESEG_EMULATOR_MODULE={name}"]
            call = ["g++", "-c", *flags, *extra, *define, "-x", "c++", str(source), "-o", str(partial)]
            subprocess.run(call, check=True)
            os.replace(partial, target)
        return target

    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
            objects = list(pool.map(build, [HERE / "emulator.cpp", HERE / "controls.cpp", *sources]))
        names = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
        library = FOLDER / f"{name}_{names}.so"
        if not library.is_file():
            partial = library.with_suffix(f".{os.getpid()}")
            link = ["g++", "-shared", *extra, "-o", str(partial), *map(str, objects)]
            subprocess.run([*link, *([f"-L{TORCH / 'lib'}", "-ltorch_cpu"] if ops else [])], check=True)
            os.replace(partial, library)
    return library


def import_module(name: str, library: Path) -> Any:
    """The Python side of a library built by `compile_module`."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def missing() -> str | None:
    """Why the emulator cannot be built here."""
    if shutil.which("g++") is None:
        return "no g++ to compile the CUDA kernels for the CPU"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


@functools.cache
def controls() -> Any:
    """The emulator of all kernels of csrc/cuda, built and loaded: `configure`, `counters`, `reset_counters`."""
    sources = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
    return import_module("liteseg_cuda_on_cpu", compile_module("liteseg_cuda_on_cpu", sources))


def load() -> str | None:
    """Build and load the emulated kernels; the reason where that cannot be."""
    reason = missing()
    if reason is None:
        controls()
    return reason
