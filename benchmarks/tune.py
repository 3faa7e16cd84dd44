"""python -m benchmarks.tune [--table NAME ...] [--seconds N] [--dry-run]: times tiles on this GPU, rewrites tiles.csv.

Each row of liteseg_kernels/triton/tiles.csv that the networks' layers reach is tried with other tiles, one size at a
time from where it is, and the fastest becomes the row of this device's architecture, with its time and where that was
measured. A tile that spills, or does not fit, is passed over. Rows with a time of this device and triton are not tried
again (`--again` does), so a run that was stopped goes on where it was; the table is saved after each row. What changed
is a diff to read, to check (`make gpu-day SECTIONS=parity`, `python -m tests.aot.report`) and to commit.

`--dry-run` needs no GPU: it compiles the tiles for sm_90, takes nothing for a time, and writes to `--output`.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# before triton is imported: this process compiles
os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from liteseg.atomic import atomic_path  # noqa: E402
from liteseg.bench.record import now  # noqa: E402
from liteseg.bench.timing import captured, quantiles  # noqa: E402
from liteseg_kernels.triton import _tiles  # noqa: E402
from liteseg_kernels.triton._tiles import Key, Tile  # noqa: E402
from tests.aot.cases import cases  # noqa: E402

# another tile has to be faster by more than times scatter
_GAIN = 0.97
# what each size may be
_SIZES: dict[str, tuple[int, ...]] = {
    "height": (4, 8, 16),
    "width": (4, 8, 16, 32, 64),
    "inner": (16, 32, 64),
    "outer": (16, 32, 64, 128),
    "warps": (4, 8),
    "stages": (1, 2, 3),
}
_LARGEST = 128 * 128

Launcher = Callable[[], Any]


@dataclasses.dataclass
class Device:
    """What runs the launches: a GPU, or in a dry run the compiler alone."""

    name: str
    target: str
    dry: bool

    @classmethod
    def find(cls, dry: bool) -> Device:
        if not dry:
            return cls(torch.cuda.get_device_name(0), _tiles.target_of(torch.device("cuda", 0)), False)
        from tests.aot.compiler import FakeDriver, gpu_target

        triton.runtime.driver.set_active(FakeDriver(gpu_target("sm_90")))
        _tiles.target_of = lambda device: "sm_90"
        return cls("none", "sm_90", True)

    def launch(self, kernel: Callable[..., Any]) -> int:
        """Launch (dry: compile) a kernel; registers spilled."""
        compiled = kernel(warmup=self.dry)
        return 0 if self.dry else compiled.n_spills

    def milliseconds(self, kernels: Sequence[Callable[..., Any]]) -> float:
        """Of all launches, one after another, from a CUDA graph; in a dry run a number that means nothing."""
        if self.dry:
            return float(len(kernels))

        def run() -> None:
            for kernel in kernels:
                kernel(warmup=False)

        replay, _ = captured(run, "cuda")
        return quantiles(replay, "cuda").p50


class Launches:
    """Runs launchers with the launches of one row kept, and all others left out."""

    def __init__(self) -> None:
        self.taken: set[Key] = set()
        self._row: Key | None = None
        self._last: Key | None = None
        self._kept: list[Callable[..., Any]] = []
        self._chosen, launch = _tiles._chosen, JITFunction.run

        def choose(*arguments: Any) -> Key:
            self._last = self._chosen(*arguments)
            self.taken.add(self._last)
            return self._last

        def run(function: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            if self._last == self._row is not None:
                self._kept.append(functools.partial(launch, function, *args, grid=grid, **options))

        _tiles._chosen = choose
        JITFunction.run = run

    def choose_anew(self) -> None:
        """Rows were added to the table."""
        self._chosen.cache_clear()

    def of(self, row: Key | None, call: Launcher, device: str) -> list[Callable[..., Any]]:
        """What `call` launches with the tile of `row`."""
        self._row, self._last, self._kept = row, None, []
        with torch.device(device):
            call()
        return self._kept


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Tiles that differ from `tile` in one size; a size of 1 is none."""
    for name, values in _SIZES.items():
        size = getattr(tile, name)
        # the next smaller and the next larger one; all numbers of stages
        near = values if name == "stages" else [v for v in values if size // 2 <= v <= size * 2]
        for value in near if size > 1 or name == "stages" else ():
            other = tile._replace(**{name: value})
            if other != tile and other.height * other.width * other.outer <= _LARGEST:
                yield other


def measure(row: Key, tile: Tile, calls: Sequence[Launcher], launches: Launches, device: Device) -> float | None:
    """Milliseconds of all launches with `tile` in `row`, or None where it cannot be."""
    _tiles.table()[row] = tile
    kernels: list[Callable[..., Any]] = []
    try:
        for call in calls:
            found = launches.of(row, call, "meta" if device.dry else "cuda")
            # the launcher went another way
            if not found:
                return None
            kernels += found
        if any(device.launch(kernel) for kernel in kernels):
            return None
        return device.milliseconds(kernels)
    except Exception as problem:
        # too much shared memory, or a shape that the compiler does not take
        print(f"    {tuple(tile)}: {type(problem).__name__}: {' '.join(str(problem).split())[:120]}", flush=True)
        return None


def tune(row: Key, calls: Sequence[Launcher], launches: Launches, device: Device, end: float) -> tuple[Tile, float]:
    """The best tile for a row, and its time: from its own tile on to a faster neighbour, until there is none."""
    best = _tiles.table()[row]
    least = measure(row, best, calls, launches, device)
    if least is None:
        raise RuntimeError(f"tune: row: expected one that can be launched, got {', '.join(map(str, row))}")
    tried = {best}
    moved = True
    while moved and time.monotonic() < end:
        moved = False
        for tile in list(neighbours(best)):
            if tile in tried or time.monotonic() > end:
                continue
            tried.add(tile)
            took = measure(row, tile, calls, launches, device)
            if took is not None and took < least * _GAIN:
                best, least, moved = tile, took, not device.dry
    _tiles.table()[row] = best
    return best, least


def write(rows: list[dict[str, str]], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        out = csv.DictWriter(file, _tiles.COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def put(rows: list[dict[str, str]], row: Key, tile: Tile, milliseconds: float, measured: str) -> None:
    """Put a tuned row into the table: in the place of its own, or behind the one for any device."""
    sizes = {name: str(getattr(tile, name)) for name in _SIZES}
    line = {**{k: str(v) for k, v in row._asdict().items()}, **sizes}
    line |= {"us": f"{1e3 * milliseconds:.4g}", "measured": measured}
    places = [i for i, other in enumerate(rows) if _tiles.parsed(other)[0][:5] == row[:5]]
    same = [i for i in places if rows[i]["target"] == row.target]
    if same:
        rows[same[0]] = line
    else:
        rows.insert(places[-1] + 1, line)


def reached(launches: Launches, device: Device, tables: Sequence[str]) -> dict[Key, list[Launcher]]:
    """The rows that the networks' layers are launched with, and the calls that launch them."""
    found: dict[Key, list[Launcher]] = collections.defaultdict(list)
    for dtype in (torch.float16, torch.float32):
        for case in cases():
            call: Launcher = functools.partial(case.call, dtype)
            launches.taken.clear()
            launches.of(None, call, "meta")
            for key in launches.taken:
                # what does not depend on the element's size is timed in half precision
                whole = key.kind in ("any", "nhwc", "nchw") and dtype == torch.float32
                if not whole and (not tables or key.table in tables):
                    found[key._replace(target=device.target)].append(call)
                    _tiles.table().setdefault(key._replace(target=device.target), _tiles.table()[key])
    launches.choose_anew()
    return found


def main(arguments: list[str] | None = None) -> int:
    """0: all rows timed; 1: some could not be launched; 2: wrong arguments or no device; 3: `--seconds` ran out."""
    names = sorted({key.table for key in _tiles.table()})
    parser = argparse.ArgumentParser("python -m benchmarks.tune", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--table", choices=names, action="append", default=[], help="repeatable; default: all")
    parser.add_argument("--seconds", type=float, default=540.0, help="stop after about this long, for now")
    parser.add_argument("--again", action="store_true", help="time rows again that this device has a time for")
    parser.add_argument("--dry-run", action="store_true", help="compile only; checks this script")
    parser.add_argument("--output", type=Path, help="default: the table itself; a dry run needs a file of its own")
    options = parser.parse_args(arguments)
    if options.dry_run and options.output is None:
        parser.error("--output: expected a file for a dry run, which measures nothing")
    if not options.dry_run and not torch.cuda.is_available():
        print("tune: torch sees no CUDA device (--dry-run needs none, and measures nothing)", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    device = Device.find(options.dry_run)
    output = options.output or _tiles.PATH
    source = _tiles.read()
    by = f"{device.name}, triton {triton.__version__}"
    timed = {_tiles.parsed(line)[0] for line in source if line["measured"].startswith(by)}
    launches = Launches()
    rows = reached(launches, device, options.table)
    todo = [key for key in rows if options.again or key not in timed]
    print(f"{len(rows)} rows of {device.target}, {len(todo)} to time on {by}", flush=True)
    failed = 0
    for done, key in enumerate(todo):
        before = _tiles.table()[key]
        try:
            best, least = tune(key, rows[key], launches, device, end)
        except RuntimeError as problem:
            failed += 1
            print(problem, file=sys.stderr)
            continue
        # what was cut short is tried again as a whole
        if time.monotonic() > end:
            print(f"{len(todo) - done} rows left: run again")
            return 3
        print(f"{', '.join(map(str, key))}: {tuple(before[:6])} -> {tuple(best[:6])}, {1e3 * least:.4g} us", flush=True)
        put(source, key, best, least, f"{by}, {now()[:10]}")
        write(source, output)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
