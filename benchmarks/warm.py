"""Compiles ahead, without a GPU, the Triton kernels that a plan launches, and their launchers, into Triton's cache.

    TRITON_CACHE_DIR=DIR python -m benchmarks.warm PLAN SECONDS

Networks and tests run on the CPU as they will on the GPU, but each launch is compiled in place of being run: results
are garbage and nobody looks at them. The cache serves machines with the same Triton and Python alone; what it does not
hold is compiled there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .rows import ROOT

TARGET = "sm_90"
# functions of the driver
_CALLED = re.compile(r"\b(cu[A-Z]\w+)\(")


def compile_only() -> None:
    """From here on launches in this process compile for TARGET and do nothing else; Triton takes CPU tensors."""
    import triton
    from triton.backends.nvidia import driver
    from triton.runtime import build
    from triton.runtime.jit import JITFunction

    from liteseg_kernels.ops import _register
    from liteseg_kernels.triton import _tiles
    from tests.aot.compiler import FakeDriver, gpu_target

    triton.runtime.driver.set_active(FakeDriver(gpu_target(TARGET)))
    _register._triton_unavailable = lambda device_type: None
    _tiles.target_of = lambda device: TARGET
    # built to be loaded where there is a driver
    build._load_module_from_path = lambda name, path: _Anything()
    folder = Path(tempfile.mkdtemp())
    # where it has no functions that are called, the launchers would not need it, and find none on the GPU machine
    sources = Path(driver.__file__).parent.glob("driver.*")
    called = {name for path in sources for name in _CALLED.findall(path.read_text())}
    text = "".join(f"void {name}(void) {{}}\n" for name in sorted(called))
    command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, input=text, text=True, check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    driver.CudaUtils()
    launch = JITFunction.run
    known: set[str] = set()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = launch(self, *args, grid=(1, 1, 1), warmup=True, **options)
        # versions after 3.6 launch every signature with the same code
        if kernel is not None and kernel.hash not in known and hasattr(driver, "make_launcher"):
            known.add(kernel.hash)
            driver.CudaLauncher(kernel.src, kernel.metadata)

    JITFunction.run = run


class _Anything(SimpleNamespace):
    """A module that is not loaded."""

    def __getattr__(self, name: str) -> Any:
        return None


# --- as a plugin of pytest: python -O -m pytest -p benchmarks.warm


def pytest_configure(config: Any) -> None:
    from tests import worlds

    if config.option.markexpr == "gpu":
        compile_only()
        worlds.WORLDS["gpu-triton"] = ("triton", "cpu", worlds.HALF_TOO, lambda: "")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    items[:] = [item for item in items if "[gpu-triton" in item.nodeid]
    for item in items:
        # for lack of a GPU
        item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "skip"]


# --- as a program


def networks(day: Any, deadline: float) -> None:
    from . import runners

    for dtype in day.dtypes:
        for size in day.sizes:
            if time.time() > deadline:
                return
            picture = runners.inputs(size, 1, dtype, "labels", 1)[0]
            with torch.inference_mode():
                runners.runner(day, day.networks[0], size, dtype, "labels", "liteseg triton")(picture)
            print(f"{day.networks[0]} {size[0]}x{size[1]} {day.dtype_name(dtype)}", flush=True)


def main() -> None:
    """Stage `networks` in this process, tests in a process of their own."""
    plan, seconds = sys.argv[1], float(sys.argv[2])
    deadline = time.time() + seconds
    os.environ["TRITON_INTERPRET"] = "0"
    compile_only()
    import dataclasses

    from .day import Day

    networks(dataclasses.replace(Day.make(plan, False), device="cpu"), deadline)
    command = [sys.executable, "-O", "-m", "pytest", "tests/kernels", "-m", "gpu", "-q", "--assert=plain"]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.warm", "-W", "ignore", "--no-header", "--tb=no", "-rN"]
    variables = {**os.environ, "LITESEG_PARITY": "each"}
    try:
        subprocess.run(command, cwd=ROOT, env=variables, timeout=max(1.0, deadline - time.time()), check=False)
    except subprocess.TimeoutExpired:
        print("out of time: the rest is compiled on the GPU machine", flush=True)


if __name__ == "__main__":
    main()
