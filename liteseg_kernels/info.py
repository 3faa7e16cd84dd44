"""What this installation can run, and why anything is missing: `python -m liteseg_kernels.info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from . import _dispatch, _loader
from ._version import __version__


def _triton() -> tuple[str | None, str | None]:
    """Version of triton, and the reason why its kernels cannot run here."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None, "triton is not installed"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return version, None
    return version, "needs a CUDA device, or TRITON_INTERPRET=1 for slow runs on the CPU"


def _build() -> dict[str, Any]:
    try:
        from . import _build_info as info
    except ImportError:
        return {"mode": None, "torch": None, "compiler": None, "nvcc": None, "archs": (), "sources": {}, "skipped": {}}
    return {
        "mode": info.MODE,
        "torch": info.TORCH,
        "compiler": info.COMPILER,
        "nvcc": info.NVCC,
        "archs": info.CUDA_ARCHS,
        "sources": info.SOURCES,
        "skipped": info.SKIPPED,
    }


def _small_grids(cuda_missing: str | None) -> dict[str, str | None]:
    """Why CUDA kernels with small grids do without early launches and clusters, or None where they have them."""
    reason = cuda_missing
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    if reason is None and torch.cuda.get_device_capability()[0] < 9:
        reason = "need sm_90"
    switches = _dispatch.small_grids()
    off = {name: None if on else f"switched off by {_dispatch.SMALL_GRIDS[name]}=0" for name, on in switches.items()}
    return {name: why or reason for name, why in off.items()}


def collect() -> dict[str, Any]:
    """Everything the command prints.

    Returns:
        `version`, `python`, `torch`, `torch_cuda` (CUDA version of the torch build or None), `devices` (names of the
        GPUs), `triton` (version or None), `cpu_isa` (instruction set of the C++ kernels, or None), `build` (its mode,
        torch, compiler, nvcc, archs, sources and skipped parts), `libraries` and `backends` (name -> None when usable,
        else the reason why not), `small_grids` (the same for early launches and clusters, see docs/kernels.md),
        `default_backend`.
    """
    _loader.load()
    triton, no_triton = _triton()
    libraries = dict(_loader.STATUS)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "triton": triton,
        "cpu_isa": torch.ops.liteseg_cpu.isa() if libraries["_C"] is None else None,
        "build": _build(),
        "libraries": libraries,
        "backends": {
            "reference": None,
            "cpu": libraries["_C"],
            "triton": no_triton,
            "cuda": libraries["_C_cuda"],
        },
        "small_grids": _small_grids(libraries["_C_cuda"]),
        "default_backend": _dispatch.selection().name,
    }


def _lines(info: dict[str, Any]) -> list[str]:
    build, small = info["build"], info["small_grids"]
    archs = ", ".join(f"sm_{arch}" for arch in build["archs"])
    rows = [
        ("liteseg_kernels", info["version"]),
        ("python", info["python"]),
        ("torch", f"{info['torch']} (CUDA {info['torch_cuda'] or 'none'})"),
        ("GPUs", ", ".join(info["devices"]) or "none"),
        ("triton", info["triton"] or "none"),
        ("built with", f"torch {build['torch'] or 'none'}, {build['compiler'] or 'no C++ compiler'}"),
        ("nvcc", f"{build['nvcc']}, {archs} and PTX of the last" if build["nvcc"] else "none"),
        ("CPU kernels use", info["cpu_isa"] or "none"),
        *((f"library {name}", "loaded" if why is None else why) for name, why in info["libraries"].items()),
        *((f"backend {name}", "usable" if why is None else why) for name, why in info["backends"].items()),
        *((f"CUDA {name}", "on, where grids are small" if why is None else why) for name, why in small.items()),
        ("default backend", info["default_backend"]),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def main() -> None:
    """Print `collect()` as a table."""
    print("\n".join(_lines(collect())))


if __name__ == "__main__":
    main()
