"""python -m tests.aot.nvcc [--output FILE]: resources of every CUDA kernel in the library that was built.

Reads the machine code of liteseg_kernels/_C_cuda.abi3.so, writes one row for each kernel instance and target as CSV,
and names what is over the limits: a spill, a lost matrix instruction, lost 16-byte copies. For half precision on sm_90
it also writes what the code costs (the columns of `sass.Measures`), which has limits too: they are what was reached, so
that a branch in an epilogue or a load of two bytes in a loop is seen without a GPU. Exit code 1 when something is over.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from . import sass

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = ROOT / "liteseg_kernels/_C_cuda.abi3.so"
TABLE = ROOT / "benchmarks/results/nvcc.csv"

# kernels whose products are promised to the tensor cores, in every arithmetic but exact float32
PRODUCTS = (
    "separable_conv2d_kernel",
    "separable_conv2d_classifier_kernel",
    "inverted_residual_kernel",
    "daspp_project_kernel",
    "pointwise_parts_kernel",
    "shuffle_unit_kernel",
)
# ... and that copy their operands to shared memory 16 bytes at a time
COPIES = PRODUCTS[:4]
# ... or load them 16 bytes at a time
LOADS = ("shuffle_unit_kernel",)
# kernels that may begin before what they read has been written
EARLY = (*COPIES, *LOADS, "upsample_argmax_kernel")
# the instances whose code is measured
MEASURED = re.compile(r"Fp16|Half")

# The most that the code of a measured kernel may cost, near what it costs today: a change that lowers a figure lowers
# its limit too.
LIMITS: dict[str, dict[str, int]] = {
    "inverted_residual_kernel": {
        "narrow": 0, "branches": 17, "barriers": 4, "strip_instructions": 120, "strip_cycles": 310, "hidden": 750,
        "hidden_branches": 2, "product_instructions": 32, "depthwise_instructions": 72, "copy_instructions": 12,
        "loop_instructions": 460, "membars": 1,
    },
    "separable_conv2d_kernel": {
        "narrow": 0, "branches": 18, "barriers": 3, "depthwise_instructions": 130, "copy_instructions": 20,
        "loop_instructions": 600, "membars": 1,
    },
    "separable_conv2d_classifier_kernel": {
        "narrow": 0, "branches": 17, "barriers": 3, "depthwise_instructions": 135, "copy_instructions": 16,
        "loop_instructions": 630, "membars": 0,
    },
    "daspp_project_kernel": {"narrow": 0, "branches": 5, "barriers": 2, "copy_instructions": 12, "membars": 1},
    "upsample_argmax_kernel": {"narrow": 16, "branches": 4, "barriers": 2, "loop_instructions": 400, "membars": 0},
    "shuffle_unit_kernel": {"membars": 0},
}  # fmt: skip

# separable_conv2d_kernel where its input is made on the way: with a path for each element beside that for 16 bytes
LIMITS_OF_INPUT: dict[str, dict[str, int]] = {
    "UpsampledInput": {"narrow": 46, "copy_instructions": 310},
    "UpstreamInput": {"narrow": 16, "branches": 24},
}


@dataclass(frozen=True)
class Resources:
    """One kernel instance for one target: registers a thread, bytes, instructions in the code."""

    kernel: str
    instance: str
    target: str
    registers: int
    stack: int
    shared: int
    local_accesses: int
    matrix_instructions: int
    copies_16: int
    loads_16: int
    loads: int
    nvcc: str
    measures: sass.Measures | None = None

    def faults(self) -> list[str]:
        found = []
        if self.stack or self.local_accesses:
            found.append(f"spills (stack {self.stack}, {self.local_accesses} local accesses)")
        if self.kernel in PRODUCTS and not self.instance.startswith("Fp32") and not self.matrix_instructions:
            found.append("a matrix product without a tensor-core instruction")
        if self.kernel in COPIES and not self.copies_16:
            found.append("no 16-byte copy to shared memory")
        if self.kernel in LOADS and not self.loads_16:
            found.append("no 16-byte load")
        if self.measures is not None:
            if self.kernel in EARLY and self.measures.constant_loads:
                found.append(f"{self.measures.constant_loads} loads through the read-only cache in an early launch")
            for column, most in self.limits().items():
                if getattr(self.measures, column) > most:
                    found.append(f"{column}: {getattr(self.measures, column)}, more than {most}")
        return found

    def limits(self) -> dict[str, int]:
        """The limits of its code, by column."""
        looser = next((limits for name, limits in LIMITS_OF_INPUT.items() if name in self.instance), {})
        return LIMITS.get(self.kernel, {}) | looser

    def row(self) -> list[object]:
        """As the table has it; what was not measured is empty."""
        own = [getattr(self, column) for column in OWN]
        return own + (list(astuple(self.measures)) if self.measures else [""] * len(MEASURES))


OWN = [field.name for field in fields(Resources) if field.name != "measures"]
MEASURES = [field.name for field in fields(sass.Measures)]
COLUMNS = OWN + MEASURES


def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit, or of the copies that triton brings."""
    homes = [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        homes.append(Path(spec.origin).parent / "backends/nvidia/bin")
    found = shutil.which(name) or next((str(h / name) for h in homes if os.access(h / name, os.X_OK)), None)
    return found


def missing() -> str | None:
    """Why there is nothing to read."""
    if not LIBRARY.is_file():
        return "built without CUDA: python setup.py build_ext --inplace"
    for name in ("cuobjdump", "nvdisasm", "c++filt"):
        if tool(name) is None:
            return f"no {name}"
    return None


def _run(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, input=given, check=True, capture_output=True, text=True).stdout


def _names(mangled: list[str]) -> dict[str, tuple[str, str]]:
    """(kernel, template arguments) of each mangled name."""
    plain = _run(str(tool("c++filt")), given="\n".join(mangled)).splitlines()
    names = {}
    for symbol, text in zip(mangled, plain, strict=True):
        text = re.sub(r"\(anonymous namespace\)|_GLOBAL__N__\w+|liteseg::|c10::|std::|::(?=\w)", "", text)
        found = re.search(r"(\w+_kernel)(?:<(.*?)>)?\(", text)
        if found is None:
            raise ValueError(f"nvcc: kernel: expected a name that ends in _kernel, got {text}")
        names[symbol] = found.group(1), re.sub(r"\s+(?=$|>)", "", found.group(2) or "")
    return names


def measured(library: Path = LIBRARY) -> dict[str, sass.Measures]:
    """What the code of the half-precision kernels for sm_90 costs, by their mangled names."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [str(tool("cuobjdump")), "-xelf", "sm_90", str(library.resolve())],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        found: dict[str, sass.Measures] = {}
        for cubin in sorted(Path(folder).glob("*.cubin")):
            found.update(sass.measures(str(tool("nvdisasm")), cubin, MEASURED))
    return found


def read(library: Path = LIBRARY) -> list[Resources]:
    """The resources of all kernels in the library's machine code."""
    cuobjdump = str(tool("cuobjdump"))
    from liteseg_kernels._build_info import CUDA_ARCHS, NVCC

    rows = []
    costs = measured(library) if "90" in CUDA_ARCHS else {}
    for arch in CUDA_ARCHS:
        usage = _run(cuobjdump, "--dump-resource-usage", "-arch", f"sm_{arch}", str(library))
        found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
        code = _run(cuobjdump, "--dump-sass", "-arch", f"sm_{arch}", str(library))
        bodies = dict(part.split("\n", 1) for part in code.split("Function : ")[1:])
        names = _names([symbol for symbol, *_ in found])
        for symbol, *numbers in found:
            registers, stack, shared = map(int, numbers)

            def count(pattern: str, body: str = bodies[symbol]) -> int:
                return len(re.findall(pattern, body))

            rows.append(
                Resources(
                    *(*names[symbol], f"sm_{arch}", registers, stack, shared),
                    local_accesses=count(r"\b(?:LDL|STL)\b"),
                    matrix_instructions=count(r"\b[HIQ]G?MMA\b"),
                    copies_16=count(r"\bLDGSTS\.E\.(?:BYPASS\.)?(?:LTC128B\.)?128\b"),
                    loads_16=count(r"\bLDG\.E\.128\b"),
                    loads=count(r"\bLDG\b"),
                    nvcc=str(NVCC),
                    measures=costs.get(symbol) if arch == "90" else None,
                )
            )
    return sorted(rows, key=lambda row: (row.kernel, row.instance, row.target))


def write(rows: list[Resources], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(row.row() for row in rows)
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.aot.nvcc", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    if reason := missing():
        print(f"nvcc: {reason}", file=sys.stderr)
        return 1
    rows = read()
    write(rows, options.output)
    faults = [f"{row.target} {row.kernel}<{row.instance}>: {fault}" for row in rows for fault in row.faults()]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} kernel instances read, {len(faults)} faults: {options.output}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
