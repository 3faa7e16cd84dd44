"""Rows of a GPU day: work that can be resumed, its CSV files, and where and on what it was measured.

A CSV is the memory of a day: a row that is there for the same sources is not run again. Rows are only appended.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liteseg.bench import record, turns
from liteseg.bench.record import Skip, now, read, write_text

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT_VARIABLE = "LITESEG_GPU_DAY_ENVIRONMENT"
ENVIRONMENT = ("device", "driver", "torch", "triton", "commit", "sources", "date")
# what was run, then what came out
SPEED_KEY = ("op", "provider", "mode", "shape", "layout", "dtype")
SPEED = (
    *SPEED_KEY,
    *(
        "launch",
        "p50",
        "p20",
        "p80",
        "unit",
        "GB/s",
        "share of copy",
        "TFLOP/s",
        "images/s",
        "peak MB",
        "error",
        "status",
        "detail",
    ),
    *ENVIRONMENT,
)
CHECK_KEY = ("check", "case", "backend", "dtype")
CHECK = (*CHECK_KEY, "status", "seconds", "detail", *ENVIRONMENT)
KERNEL = ("network", "provider", "kernel", "calls", "us", "share", *ENVIRONMENT)
LAUNCH_KEY = ("network", "provider", "launch")
LAUNCH = (*LAUNCH_KEY, "layer", "kernel", "us", "predicted us", "measured/predicted", "source", *ENVIRONMENT)
COUNTER = (
    *LAUNCH_KEY,
    *("kernel", "us", "grid", "threads", "registers", "blocks an SM", "warps active %", "issue active %"),
    *("instructions", "SM %", "memory %", "waits"),
    *ENVIRONMENT,
)
SECTION = ("section", "status", "ok", "failed", "skipped", "left", "seconds", "detail", *ENVIRONMENT)

Values = dict[str, Any]


class DeviceFault(Exception):
    """After this row every later call of the process would fail too; the row itself is recorded."""


@dataclass
class Row:
    """One measurement or check.

    Attributes:
        key: values of the key columns.
        run: gives the other columns; raises Skip where it cannot run, anything else where it fails. What it gives as
            "lines" are rows of their own, each with the key columns in which it differs.
        rank: rows of lower rank run first.
        cost: seconds it is expected to take; it is left for another call when there is less time.
        limit: seconds after which it counts as hanging.
        ours: whether the result depends on this project's kernels (else only on torch).
        always: run again in every call.
    """

    key: dict[str, str]
    run: Callable[[], Values] = field(repr=False)
    rank: float = 0.0
    cost: float = 2.0
    limit: float = 60.0
    ours: bool = True
    always: bool = False

    @property
    def name(self) -> str:
        return ", ".join(value for value in self.key.values() if value)


@dataclass
class Outcome:
    """How a section went: number of rows by status, those left for lack of time among them, and the first of these."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    left: int = 0
    first_left: list[str] = field(default_factory=list)


def digest(paths: Iterable[Path]) -> str:
    state = hashlib.sha256()
    for path in sorted(paths):
        state.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()[:12]


@functools.cache
def sources() -> str:
    """Digest of everything that decides what our kernels compute and how fast."""
    folders = [(ROOT / "csrc", "*.*"), (ROOT / "liteseg_kernels", "*.py"), (ROOT / "liteseg", "*.py")]
    # the launch tables
    folders += [(ROOT / "liteseg_kernels", "*.csv")]
    files = [path for folder, pattern in folders for path in folder.rglob(pattern) if path.is_file()]
    # written by the build
    return digest([ROOT / "setup.py", *(path for path in files if path.name != "_build_info.py")])


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


@functools.cache
def environment() -> dict[str, str]:
    """Where and on what this process runs: from the parent process, which hands it on, or (importing torch) anew."""
    if ENVIRONMENT_VARIABLE in os.environ:
        return json.loads(os.environ[ENVIRONMENT_VARIABLE])
    import torch

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
        shown = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = shown.splitlines()[0] if shown else "unknown"
    else:
        device, driver = f"cpu {platform.machine()}", "none"
    return {
        "device": device,
        "driver": driver,
        "torch": torch.__version__,
        "triton": version,
        "commit": record.commit() or "unknown",
        "sources": sources(),
    }


def slug(device: str) -> str:
    """The device's name as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def append(path: Path, columns: tuple[str, ...], values: Values) -> None:
    """Add a line to a CSV, its environment filled in; a new file gets its header."""
    record.append(path, columns, [{**environment(), "date": now(), **values}])


def known(path: Path, key: tuple[str, ...], since: str) -> dict[tuple[str, ...], str]:
    """Status of the rows of `path` that hold for the sources (or, for PyTorch's own, the torch) at hand."""
    here = environment()
    found = {}
    for line in read(path):
        ours = not line.get("provider") or line["provider"].startswith("liteseg")
        same = line["sources"] == here["sources"] if ours else line["torch"] == here["torch"]
        if same and line["device"] == here["device"] and line["date"] >= since:
            found[tuple(line[name] for name in key)] = line["status"]
    return found


@dataclass
class Sheet:
    """The CSV that a section writes to, and the marker that tells the parent process which row is running."""

    path: Path
    columns: tuple[str, ...]
    key: tuple[str, ...]
    marker: Path

    def add(self, row_key: dict[str, str], values: Values) -> None:
        append(self.path, self.columns, {**row_key, **values})

    def enter(self, row_key: dict[str, str], limit: float) -> None:
        """Say what is running: should the process end or take longer than `limit` seconds, that was it."""
        write_text(self.marker, json.dumps({"key": row_key, "started": time.time(), "limit": limit}))

    def known(self, since: str = "") -> dict[tuple[str, ...], str]:
        """Status by key of the rows that hold here and now."""
        return known(self.path, self.key, since)


def sheet(kind: str, section: str, results: Path, logs: Path) -> Sheet:
    """The CSV of one kind for the device at hand, as `section` writes to it."""
    columns, key = (CHECK, CHECK_KEY) if kind == "checks" else (SPEED, SPEED_KEY)
    path = results / f"{slug(environment()['device'])}-{kind}.csv"
    return Sheet(path, columns, key, logs / f"{section}-running.json")


def run_rows(
    rows: Iterable[Row], sheet: Sheet, deadline: float, since: str, progress: Callable[[Outcome], None]
) -> list[str]:
    """Run what is not known yet, best rank first, until `deadline` (seconds since the epoch); the names of the rows
    left over. `progress` is told the outcome so far, with everything still to come as left."""
    done = sheet.known(since)
    outcome = Outcome()

    def count(status: str) -> None:
        outcome.ok += status == "ok"
        outcome.skipped += status == "skipped"
        outcome.failed += status not in ("ok", "skipped")

    open_rows = []
    for row in sorted(rows, key=lambda row: row.rank):
        status = done.get(tuple(row.key.get(name, "") for name in sheet.key))
        if status is None or row.always:
            open_rows.append(row)
        else:
            count(status)
    left: list[str] = []
    for index, row in enumerate(open_rows):
        ahead = [other.name for other in open_rows[index : index + 3]]
        outcome.left, outcome.first_left = len(left) + len(open_rows) - index, (left + ahead)[:3]
        progress(outcome)
        if time.time() + row.cost > deadline:
            left.append(row.name)
        else:
            count(run_row(row, sheet))
    outcome.left, outcome.first_left = len(left), left[:3]
    progress(outcome)
    return left


def failure(problem: Exception) -> Values:
    # a traceback's places as in the repository, wherever it lies
    text = f"{type(problem).__name__}: {problem}".replace(f"{ROOT}/", "")
    return {"status": "failed", "detail": text[:500]}


def is_device_fault(problem: Exception) -> bool:
    """Whether every later call of the process would fail too."""
    return "CUDA error" in str(problem)


def run_row(row: Row, sheet: Sheet) -> str:
    sheet.enter(row.key, row.limit)
    started = time.monotonic()
    fatal = False
    try:
        values = {"status": "ok", **row.run()}
    except Skip as reason:
        values = {"status": "skipped", "detail": str(reason)}
    except DeviceFault:
        # the row has told whose fault it was, and is to be tried again without that
        sheet.marker.unlink()
        raise
    except Exception as problem:
        values = failure(problem)
        fatal = is_device_fault(problem)
    for line in values.pop("lines", ()):
        sheet.add(row.key, line)
    if "seconds" in sheet.columns:
        values.setdefault("seconds", time.monotonic() - started)
    shown = values.get("p50")
    took = f"{shown:.4g} {values.get('unit', 'ms')}" if isinstance(shown, float) else values.get("detail", "")
    print(f"{values['status']:<8}{row.name}: {took}", flush=True)
    sheet.add(row.key, values)
    sheet.marker.unlink()
    if fatal:
        raise DeviceFault(row.name)
    return values["status"]


# --- comparisons on the CPU


def cpu(threads: int) -> Values:
    """Where and on what a comparison ran, by the columns that end its CSV."""
    here = record.environment("cpu", threads)
    return {"machine": here["device"], "torch": here["torch"], "commit": here["commit"], "date": here["date"][:10]}


def provider_rows(found: dict[str, turns.Outcome], limit: float) -> list[Values]:
    """One row a provider: its times, how far its result is off, and where that is no more than `limit` the ratio."""
    made: list[Values] = []
    for provider, outcome in found.items():
        row: Values = {"provider": provider}
        if outcome.reason:
            row["detail"] = outcome.reason
        else:
            row |= {**turns.spread(outcome.times), "min ms": min(outcome.times), "rounds": len(outcome.times)}
            row |= {**outcome.facts, "error": outcome.difference}
        made.append(row)
    turns.add_ratios(made, "against liteseg", limit)
    return made


def show(title: str, rows: Iterable[Values]) -> None:
    """Print a table of `provider_rows`."""
    print(title)
    for row in rows:
        parts = [f"{row['p50 ms']:9.2f} ms"] if "p50 ms" in row else []
        parts += [f"(min {row['min ms']:.2f})"] if "min ms" in row else []
        parts += [f"x{row['against liteseg']:.2f}"] if "against liteseg" in row else []
        parts += [f"{row['peak MB']} MB"] if "peak MB" in row else []
        parts += [f"error {row['error']:.2g}"] if row.get("error") is not None else []
        print(f"  {row['provider']:<20} {'  '.join([*parts, row.get('detail', '')])}".rstrip(), flush=True)
