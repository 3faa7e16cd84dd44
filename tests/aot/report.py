"""python -m tests.aot.report: resources of every shipped Triton configuration, as benchmarks/results/aot.csv.

Compiles, for every target and dtype, what the launchers would launch at the networks' layers, with the triton that is
installed. What the table has for the same code is not compiled again, so a run that was stopped goes on where it was;
rows of other versions of triton stay while their code is still launched. Names what is over the limits. Exit code 1
when something is, or when no case reaches a row of a launch table; 3 when `--seconds` ran out first.

    --check            compile nothing: is the table complete, for every version of triton in it, and within the limits?
    --sample           compile the tightest launch of each kernel and compare it with its row
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import csv
import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

# before triton is imported: this process compiles
os.environ.pop("TRITON_INTERPRET", None)
# triton 3.10 changes the default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch  # noqa: E402
import triton  # noqa: E402

from liteseg_kernels.triton import _tiles  # noqa: E402
from tests.aot.cases import DTYPES, cases  # noqa: E402
from tests.aot.compiler import COLUMNS, Launch, Resources, launches  # noqa: E402

# gfx942 is compiled to see that it can be: what is over a limit there is reported, and fails nothing
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
REQUIRED = ("sm_80", "sm_90", "sm_100")
_LEFT_OUT = {("gfx942", torch.bfloat16), ("gfx942", torch.float32)}
# the triton that CI installs, and that of the GPU machines, with the targets compiled by it
VERSIONS = {"3.9.0": TARGETS, "3.6.0": REQUIRED}
TABLE = Path("benchmarks/results/aot.csv")

# a row of the table by (key, triton)
Table = dict[tuple[str, str], Resources]


def read(path: Path) -> Table:
    if not path.exists():
        return {}
    table: Table = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            typed = {k: v if k in _TEXTS else v == "True" if k == "tensor_product" else int(v) for k, v in line.items()}
            row = Resources(**typed)
            table[row.key, row.triton] = row
    return table


_TEXTS = ("kernel", "case", "dtype", "target", "triton", "tile", "key")


def write(table: Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    rows = sorted(table.values(), key=lambda r: (r.kernel, r.target, r.dtype, r.triton, r.case, r.tile, r.key))
    with temporary.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        out.writerows(map(astuple, rows))
    os.replace(temporary, path)


def _configuration(dtype: torch.dtype, launch: Launch) -> tuple[object, ...]:
    """What a row stands for: kernel, dtype and everything that decides how much a program holds at once."""
    sizes = ("TILE", "BLOCK", "CELLS", "TAPS", "SPLITS", "SLOTS", "MAPS", "KH", "num_")
    chosen = sorted((k, v) for k, v in launch.options.items() if k.startswith(sizes))
    return launch.kernel, launch.types(), *chosen


def _weight(launch: Launch) -> tuple[int, int, str]:
    """Launches of one configuration by what they ask of the registers: operands first, then narrower loads."""
    return launch.operands(), -launch.options.get("ALIGN", 16), launch.key


def wanted(
    targets: Sequence[str], dtypes: Sequence[torch.dtype], every: bool = False
) -> Iterator[tuple[int, torch.dtype, Launch]]:
    """(number of the case, dtype, launch) of the heaviest launch of each configuration; with `every` of all of them."""
    for target in targets:
        seen: set[str] = set()
        for dtype in dtypes:
            if (target, dtype) in _LEFT_OUT:
                continue
            found: dict[tuple[object, ...], tuple[int, torch.dtype, Launch]] = {}
            for index, case in enumerate(cases()):
                for launch in launches(target, functools.partial(case.call, dtype)):
                    place = (launch.key,) if every else _configuration(dtype, launch)
                    if place not in found or _weight(launch) > _weight(found[place][2]):
                        found[place] = index, dtype, launch
            # a float32 launch may be that of several dtypes
            yield from (item for item in found.values() if item[2].key not in seen)
            seen.update(item[2].key for item in found.values())


def _unreached(taken: set[_tiles.Key]) -> list[str]:
    """Rows of the launch tables that no case leads to."""
    return [f"tiles.csv: no case reaches row {', '.join(map(str, key))}" for key in _tiles.table() if key not in taken]


def _recording() -> set[_tiles.Key]:
    taken: set[_tiles.Key] = set()
    chosen = _tiles._chosen

    def record(*arguments: object) -> _tiles.Key:
        key = chosen(*arguments)
        taken.add(key)
        return key

    _tiles._chosen = record
    return taken


def compile_case(target: str, dtype: torch.dtype, index: int, keys: set[str]) -> list[Resources]:
    """In a worker: the launches of one case that are asked for."""
    case = list(cases())[index]
    found = launches(target, functools.partial(case.call, dtype))
    return [launch.compile(case.name, dtype) for launch in found if launch.key in keys]


def fill(table: Table, missing: Sequence[tuple[int, torch.dtype, Launch]], path: Path, jobs: int, end: float) -> int:
    """Compile what is missing, save the table after each case; how many launches are left at `end`."""
    groups: dict[tuple[str, torch.dtype, int], set[str]] = collections.defaultdict(set)
    for index, dtype, launch in missing:
        groups[launch.target, dtype, index].add(launch.key)
    left = len(missing)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        waiting = [pool.submit(compile_case, *group, keys) for group, keys in groups.items()]
        try:
            for done in concurrent.futures.as_completed(
                waiting, timeout=max(0.0, min(end - time.monotonic(), threading.TIMEOUT_MAX))
            ):
                for row in done.result():
                    table[row.key, row.triton] = row
                    left -= 1
                write(table, path)
        except concurrent.futures.TimeoutError:
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return left


def _name(row: Resources) -> str:
    return (
        f"{row.target} {row.kernel} [{row.case}] {row.dtype} {row.tile} warps {row.warps} stages {row.stages} "
        f"triton {row.triton}"
    )


def faults(table: Table, targets: Sequence[str]) -> list[str]:
    return [f"{_name(row)}: {fault}" for row in table.values() if row.target in targets for fault in row.faults()]


def check(table: Table, path: Path) -> list[str]:
    """Why the table is not what the launchers launch today."""
    keys = {launch.key: launch for _, _, launch in wanted(TARGETS, DTYPES)}
    found = []
    for version, targets in VERSIONS.items():
        known = {key for key, v in table if v == version}
        absent = collections.Counter(
            launch.kernel for key, launch in keys.items() if launch.target in targets and key not in known
        )
        found += [
            f"{path}: {count} launches of {kernel} missing for triton {version}: run python -m tests.aot.report with it"
            for kernel, count in absent.items()
        ]
    gone = collections.Counter(row.kernel for (key, _), row in table.items() if key not in keys)
    found += [f"{path}: {count} rows of {kernel} are launched no more" for kernel, count in gone.items()]
    return found


def sample(table: Table) -> Iterator[tuple[int, torch.dtype, Launch]]:
    """The launch with most registers of each kernel, on one target each, and on all where it is a matrix product."""
    launched = {launch.key: (index, dtype, launch) for index, dtype, launch in wanted(REQUIRED, DTYPES)}
    tightest: dict[tuple[str, str], Resources] = {}
    for row in table.values():
        place = row.kernel, row.target
        best = tightest.get(place)
        if row.key in launched and (best is None or _tightness(row) > _tightness(best)):
            tightest[place] = row
    kernels = sorted({kernel for kernel, _ in tightest})
    for number, kernel in enumerate(kernels):
        for place, target in enumerate(REQUIRED):
            row = tightest[kernel, target]
            if row.tensor_product or place == number % len(REQUIRED):
                yield launched[row.key]


def _tightness(row: Resources) -> tuple[bool, float, str]:
    return row.tensor_product, row.registers * row.warps, row.key


def compare(table: Table, launched: Sequence[tuple[int, torch.dtype, Launch]]) -> list[str]:
    """Differences between machine code compiled now and its rows."""
    names = [case.name for case in cases()]
    found = []
    for index, dtype, launch in launched:
        row = launch.compile(names[index], dtype)
        found += [f"{_name(row)}: {fault}" for fault in row.faults()]
        known = table.get((row.key, row.triton))
        for column in ("registers", "stack", "local_accesses", "shared", "matrix_instructions"):
            if known is not None and getattr(known, column) != getattr(row, column):
                found.append(f"{_name(row)}: {column}: expected {getattr(known, column)}, got {getattr(row, column)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.aot.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="repeatable; default: all")
    parser.add_argument("--dtype", choices=[str(d).removeprefix("torch.") for d in DTYPES], action="append")
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only kernels whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after about this long, for now")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sample", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    targets = tuple(options.target or TARGETS)
    dtypes = tuple(getattr(torch, name) for name in options.dtype) if options.dtype else DTYPES
    whole = targets == TARGETS and dtypes == DTYPES and not options.kernel
    table = read(options.output)
    taken = _recording()
    left = 0
    if options.check:
        found = check(table, options.output) + faults(table, REQUIRED) + _unreached(taken)
        print(f"{len(table)} rows, {len(found)} faults: {options.output}")
    elif options.sample:
        chosen = list(sample(table))
        found = compare(table, chosen)
        print(f"{len(chosen)} kernels compiled, {len(found)} faults")
    else:
        launched = [item for item in wanted(targets, dtypes) if options.kernel in item[2].kernel]
        missing = [item for item in launched if (item[2].key, triton.__version__) not in table]
        print(f"{len(launched)} launches, {len(missing)} to compile with triton {triton.__version__}", flush=True)
        if whole:
            keys = {launch.key for _, _, launch in launched}
            table = {place: row for place, row in table.items() if place[0] in keys}
        left = fill(table, missing, options.output, options.jobs, end) if missing else 0
        write(table, options.output)
        found = faults(table, REQUIRED) + (_unreached(taken) if whole else [])
        for note in faults(table, [t for t in targets if t not in REQUIRED]):
            print(f"only reported: {note}")
        print(f"{len(table)} rows, {len(found)} faults, {left} launches left: {options.output}")
    for fault in found:
        print(fault, file=sys.stderr)
    return 3 if left else 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
