"""Compiles, without a GPU, exactly what the launchers would launch, and reads the machine code's resources.

Has to run in a process of its own: triton decides at its import between compiling and interpreting, and the driver set
here stays. `record` runs product launchers on meta tensors; every launch is turned into a compilation for the target.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# products that the tensor cores can do: not those of exact float32
_TENSOR_PRODUCT = re.compile(r"tt\.dot .*(?:inputPrecision = tf32|xb?f16>)")
# tensor-core instructions: mma.sync, wgmma, tcgen05
_MATRIX = re.compile(r"\b(?:[HIQ]MMA|[HIQ]GMMA|UTC\w*MMA)\b")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, in registers a thread, bytes a program, instructions in the code."""

    target: str
    kernel: str
    case: str
    dtype: str
    tile: str
    warps: int
    stages: int
    registers: int
    stack: int
    local_accesses: int
    shared: int
    tensor_product: bool
    matrix_instructions: int
    wide_loads: int
    loads: int

    def faults(self) -> list[str]:
        """What is over the limits: no spills, two programs a multiprocessor, products on the tensor cores."""
        found = []
        if self.stack or self.local_accesses:
            found.append(f"spills (stack {self.stack}, {self.local_accesses} local accesses)")
        most = 65536 // (2 * 32 * self.warps)
        if self.registers > min(most, 255):
            found.append(f"{self.registers} registers, more than {most}")
        if self.shared > 113 * 1024:
            found.append(f"{self.shared} bytes of shared memory, more than 113 KB")
        if self.tensor_product and not self.matrix_instructions:
            found.append("a matrix product without a tensor-core instruction")
        return found


COLUMNS = [field.name for field in fields(Resources)]


class FakeDriver:
    """Stands where a GPU's driver would: enough for triton to specialise and compile for `target`."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # triton keeps compiled kernels by device, not by target
        return int(self.target.arch)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def _tool(name: str, *args: str) -> str:
    return subprocess.run([_TOOLS / name, *args], check=True, capture_output=True, text=True).stdout


def _resources(compiled: Any, **identity: Any) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = dict(re.findall(r"(\w+):(\d+)", _tool("cuobjdump", "--dump-resource-usage", str(cubin))))
        code = _tool("cuobjdump", "--dump-sass", str(cubin))
    return Resources(
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=compiled.metadata.shared,
        tensor_product=bool(_TENSOR_PRODUCT.search(compiled.asm["ttir"])),
        matrix_instructions=len(_MATRIX.findall(code)),
        wide_loads=len(re.findall(r"\b(?:LDG|LDGSTS)\.E\.(?:\w+\.)*128", code)),
        loads=len(re.findall(r"\b(?:LDG|LDGSTS)\b", code)),
        **identity,
    )


@contextlib.contextmanager
def _compiling(collect: Callable[[JITFunction, Any, dict[str, Any]], None]) -> Iterator[None]:
    launch = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = launch(self, *args, grid=grid, warmup=True, **options)
        collect(self, compiled, options)
        return compiled

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = launch


def record(arch: int, case: str, dtype: torch.dtype, call: Callable[[], Any], seen: set[str]) -> list[Resources]:
    """Resources of every kernel that `call` launches on sm_`arch`, but for those whose code is in `seen` already."""
    found: list[Resources] = []

    def collect(function: JITFunction, compiled: Any, options: dict[str, Any]) -> None:
        if compiled.hash in seen:
            return
        seen.add(compiled.hash)
        sizes = [str(v) for k, v in options.items() if k.startswith(("TILE", "BLOCK", "TAPS", "SPLITS"))]
        found.append(
            _resources(
                compiled,
                target=f"sm_{arch}",
                kernel=function.__name__,
                case=case,
                dtype=str(dtype).removeprefix("torch."),
                tile="x".join(sizes),
                warps=options["num_warps"],
                stages=options["num_stages"],
            )
        )

    triton.runtime.driver.set_active(FakeDriver(GPUTarget("cuda", arch, 32)))
    with _compiling(collect):
        call()
    return found
