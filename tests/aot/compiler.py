"""Compiles, without a GPU, exactly what the launchers would launch, and reads the machine code's resources.

Has to run in a process of its own: triton decides at its import between compiling and interpreting, and the driver set
here stays. `launches` runs a product launcher on meta tensors and keeps what it would launch; `Launch.compile` turns
that into machine code for the target.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from liteseg_kernels.triton import _tiles

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# products that the tensor cores can do: not those of exact float32
_TENSOR_PRODUCT = re.compile(r"tt\.dot .*(?:inputPrecision = tf32|xb?f16>)")
# tensor-core instructions: mma.sync, wgmma, tcgen05; on AMD mfma
_MATRIX = re.compile(r"\b(?:[HIQ]MMA|[HIQ]GMMA|UTC\w*MMA)\b")
_MATRIX_AMD = re.compile(r"\bv_mfma_\w+")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, in registers a thread, bytes a program, instructions in the code.

    `key` stands for all that the code depends on but triton's version: source, argument types, tile and target.
    """

    kernel: str
    case: str
    dtype: str
    target: str
    triton: str
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
    key: str

    def faults(self) -> list[str]:
        """What is over the limits: no spills, two programs a multiprocessor, products on the tensor cores."""
        found = []
        if self.stack or self.local_accesses:
            found.append(f"spills (stack {self.stack}, {self.local_accesses} local accesses)")
        amd = self.target.startswith("gfx")
        # a compute unit has 512 vector registers a lane for each of four schedulers, and 64 KB of shared memory
        most = min(512 * 4 // (2 * self.warps) if amd else 65536 // (2 * 32 * self.warps), 512 if amd else 255)
        if self.registers > most:
            found.append(f"{self.registers} registers, more than {most}")
        shared = 64 if amd else 113
        if self.shared > shared * 1024:
            found.append(f"{self.shared} bytes of shared memory, more than {shared} KB")
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
        return int(re.sub(r"\D", "", str(self.target.arch)))

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def gpu_target(target: str) -> GPUTarget:
    return GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)


def _source(function: JITFunction, seen: set[str]) -> list[str]:
    """The code of a kernel and of the device functions that it calls, without comments."""
    if function.__name__ in seen:
        return []
    seen.add(function.__name__)
    texts = [ast.unparse(ast.parse(function.src))]
    for name in function.fn.__code__.co_names:
        value = function.fn.__globals__.get(name)
        if isinstance(value, JITFunction) and value.fn.__module__.startswith("liteseg_kernels"):
            texts += _source(value, seen)
        elif isinstance(value, tl.constexpr):
            texts.append(f"{name} = {value.value}")
    return texts


def _specialised(value: Any, parameter: Any) -> str:
    """What triton compiles for an argument: its type, and whether an integer is 1 or divisible by 16, where the kernel
    asks for it."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_specialised(v, parameter) for v in value)})"
    if isinstance(value, int) and not isinstance(value, bool):
        if value == 1 and not parameter.do_not_specialize:
            return "1"
        divides = value % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        return f"i{64 if abs(value) > 2**31 - 1 else 32}{'/16' if divides else ''}"
    return type(value).__name__


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


@dataclass(frozen=True)
class Launch:
    """One launch for one target: a kernel with its arguments and options."""

    function: JITFunction
    args: tuple[Any, ...]
    options: dict[str, Any]
    target: str
    key: str

    @property
    def kernel(self) -> str:
        return self.function.__name__

    def types(self) -> tuple[str, ...]:
        """Element types of the tensors among the arguments."""
        return tuple(sorted({str(t.dtype) for t in _tensors(self.args)}))

    def operands(self) -> int:
        """Tensors among the arguments."""
        return len(_tensors(self.args))

    def compile(self, case: str, dtype: torch.dtype) -> Resources:
        triton.runtime.driver.set_active(FakeDriver(gpu_target(self.target)))
        compiled = self.function.run(*self.args, grid=(1, 1, 1), warmup=True, **self.options)
        sizes = [str(v) for k, v in self.options.items() if k.startswith(("TILE", "BLOCK", "TAPS", "SPLITS"))]
        return Resources(
            kernel=self.kernel,
            case=case,
            dtype=str(dtype).removeprefix("torch."),
            target=self.target,
            triton=triton.__version__,
            tile="x".join(sizes),
            warps=self.options["num_warps"],
            stages=self.options["num_stages"],
            key=self.key,
            tensor_product=bool(_TENSOR_PRODUCT.search(compiled.asm["ttir"])),
            shared=compiled.metadata.shared,
            **(_amd(compiled) if self.target.startswith("gfx") else _nvidia(compiled)),
        )


def _tool(name: str, *args: str) -> str:
    return subprocess.run([_TOOLS / name, *args], check=True, capture_output=True, text=True).stdout


def _nvidia(compiled: Any) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = dict(re.findall(r"(\w+):(\d+)", _tool("cuobjdump", "--dump-resource-usage", str(cubin))))
        code = _tool("cuobjdump", "--dump-sass", str(cubin))
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "matrix_instructions": len(_MATRIX.findall(code)),
        "wide_loads": len(re.findall(r"\b(?:LDG|LDGSTS)\.E\.(?:\w+\.)*128", code)),
        "loads": len(re.findall(r"\b(?:LDG|LDGSTS)\b", code)),
    }


def _amd(compiled: Any) -> dict[str, int]:
    code = compiled.asm["amdgcn"]
    counts = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", code, re.MULTILINE)}
    return {
        "registers": counts["vgpr_count"],
        "stack": counts["private_segment_fixed_size"],
        "local_accesses": counts["vgpr_spill_count"],
        "matrix_instructions": len(_MATRIX_AMD.findall(code)),
        "wide_loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", code)),
        "loads": len(re.findall(r"\b(?:global|buffer)_load_\w+", code)),
    }


@contextlib.contextmanager
def _collecting(collect: Callable[[JITFunction, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    launch = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        collect(self, args, options)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = launch


def launches(target: str, call: Callable[[], Any]) -> list[Launch]:
    """What `call` would launch on a device of the architecture `target`, each code once."""
    found: dict[str, Launch] = {}

    def collect(function: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        types = map(_specialised, args, function.params)
        parts = [*_source(function, set()), *types, repr(sorted(options.items())), target]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        found.setdefault(key, Launch(function, args, options, target, key))

    _tiles.target_of = lambda device: target
    with _collecting(collect), torch.device("meta"):
        call()
    return list(found.values())
