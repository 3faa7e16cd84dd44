"""Results: where and on what they were measured, the CSV files they are appended to, tables in Markdown."""

from __future__ import annotations

import csv
import datetime
import functools
import importlib.metadata
import io
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from liteseg.atomic import atomic_path

__all__ = [
    *(
        "ENVIRONMENT",
        "Line",
        "Skip",
        "append",
        "commit",
        "environment",
        "fastest",
        "grouped",
        "latest",
        "now",
        "number",
    ),
    *("pairs", "read", "table", "version_of", "write_text"),
]

# columns that every results file ends with
ENVIRONMENT = ("device", "threads", "python", "torch", "liteseg", "commit", "date")

Line = dict[str, str]


class Skip(Exception):
    """What cannot run here; the text says why."""


def version_of(package: str) -> str:
    """Version of an installed package, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


@functools.cache
def commit() -> str:
    """Of the checkout this package lies in, "+" after it when files were changed; LITESEG_COMMIT where it says it."""
    named = os.environ.get("LITESEG_COMMIT")
    root = Path(__file__).resolve().parents[2]
    if named or not (root / ".git").exists():
        return named or ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def now() -> str:
    """The time in UTC, as it stands in results."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(device: str, threads: int) -> dict[str, Any]:
    """Where and on what this process runs, for the columns of ENVIRONMENT."""
    import torch

    from liteseg_kernels._version import __version__

    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "liteseg": __version__,
        "commit": commit(),
        "date": now(),
    }


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(str(value).split())


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a CSV in one write, never touching what is there; a new file gets its header.

    A file that lacks some of the columns, of an earlier version, is first written anew with them, empty.

    Raises ValueError where the file has a column that is not among `columns`, or a row has one.
    """
    rows = list(rows)
    unknown = {name for row in rows for name in row} - set(columns)
    if unknown:
        raise ValueError(f"append: rows: expected columns of {path.name}, got {sorted(unknown)}")
    if not path.exists():
        write_text(path, _lines(columns, rows, header=True))
        return
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    if not set(header) <= set(columns):
        raise ValueError(f"append: path: expected a results file with the columns {', '.join(columns)}, got {path}")
    if header != list(columns):
        write_text(path, _lines(columns, read(path), header=True))
    with path.open("ab", buffering=0) as raw:
        raw.write(_lines(columns, rows, header=False).encode())


def read(path: Path) -> list[Line]:
    """The rows of a results file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def latest(lines: Iterable[Line], key: Sequence[str]) -> list[Line]:
    """The last row of each key, in the order in which the keys first appear."""
    return list({tuple(line[name] for name in key): line for line in lines}.values())


def grouped(lines: Iterable[Line], key: Sequence[str]) -> dict[tuple[str, ...], list[Line]]:
    """Rows by the values of these columns, in the order in which they first appear."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[name] for name in key), []).append(line)
    return found


def fastest(lines: Iterable[Line], column: str = "p50 ms") -> Line | None:
    """Of those with the right result and a time, None where there are none."""
    usable = [line for line in lines if line["status"] == "ok" and line[column]]
    return min(usable, key=lambda line: float(line[column]), default=None)


def pairs(groups: Iterable[Sequence[Line]], ours: Callable[[Line], bool]) -> list[tuple[Line, Line, float]]:
    """(the fastest of ours, the fastest other, how many times faster ours is) of each group with both, losses first."""
    found = []
    for group in groups:
        mine = fastest(line for line in group if ours(line))
        other = fastest(line for line in group if not line["provider"].startswith("liteseg"))
        if mine is not None and other is not None:
            found.append((mine, other, float(other["p50 ms"]) / float(mine["p50 ms"])))
    return sorted(found, key=lambda pair: pair[2])


def number(line: Mapping[str, str], column: str, form: str = ".4g") -> str:
    """A column as text, empty where it is."""
    return format(float(line[column]), form) if line[column] else ""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    body = [[_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = "|".join(("---", *("---:" for _ in header[1:])))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in body)])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
