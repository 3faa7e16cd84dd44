"""python -m tests.aot.report [--target 80 --target 90 ...] [--output FILE]: resources of every shipped Triton kernel.

Compiles every row of every launch table in every dtype for each target, writes the table as CSV and names what is over
the limits. Exit code 1 when something is, or when a row of a table was not reached.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import sys
from pathlib import Path
from typing import Any

# before triton is imported: this process compiles
os.environ.pop("TRITON_INTERPRET", None)
# triton 3.10 changes the default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch  # noqa: E402

from liteseg_kernels.triton._common import width_class  # noqa: E402
from tests.aot.cases import DTYPES, TABLES, cases  # noqa: E402
from tests.aot.compiler import COLUMNS, Resources, record  # noqa: E402

TARGETS = (80, 90, 100)


class _Reached(dict[Any, Any]):
    """A launch table that remembers which of its rows were taken."""

    def __init__(self, rows: dict[Any, Any]) -> None:
        super().__init__(rows)
        self.taken: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.taken.add(key)
        return super().__getitem__(key)


def compile_all(targets: list[int], kernels: list[str], dtypes: list[torch.dtype]) -> tuple[list[Resources], list[str]]:
    """The resources of everything compiled, and the rows of the launch tables that no case reached."""
    tables = {}
    for kernel in kernels:
        module = importlib.import_module(f"liteseg_kernels.triton.{TABLES[kernel]}")
        module._CONFIGS = tables[kernel] = _Reached(module._CONFIGS)
    rows: list[Resources] = []
    for target in targets:
        for dtype in dtypes:
            seen: set[str] = set()
            for case in cases():
                if case.kernel in kernels:
                    rows += record(target, case.name, dtype, lambda case=case, dtype=dtype: case.call(dtype), seen)
    other_classes = {"half", "single"} - {width_class(dtype) for dtype in dtypes}
    missed = [
        f"{kernel}: no case reaches row {key}"
        for kernel, table in tables.items()
        for key in set(table) - table.taken
        if not (isinstance(key, tuple) and other_classes & set(key))
    ]
    return rows, sorted(missed)


def write(rows: list[Resources], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.aot.report", description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, action="append", help="compute capability, as 90; repeatable")
    parser.add_argument("--kernel", choices=list(TABLES), action="append", help="repeatable; default: all")
    parser.add_argument("--dtype", choices=[str(d).removeprefix("torch.") for d in DTYPES], action="append")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/aot.csv"))
    options = parser.parse_args(arguments)
    dtypes = [getattr(torch, name) for name in options.dtype] if options.dtype else list(DTYPES)
    rows, missed = compile_all(options.target or list(TARGETS), options.kernel or list(TABLES), dtypes)
    write(rows, options.output)
    faults = [
        f"{row.target} {row.kernel} [{row.case}] {row.dtype} {row.tile} warps {row.warps}: {fault}"
        for row in rows
        for fault in row.faults()
    ]
    faults += missed
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} kernels compiled, {len(faults)} faults: {options.output}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
