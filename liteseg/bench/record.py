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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from liteseg.atomic import atomic_path

__all__ = ["ENVIRONMENT", "Skip", "append", "environment", "latest", "read", "table", "version_of", "write_text"]

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
def _commit() -> str:
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
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
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

    Raises ValueError where the file has other columns.
    """
    if not path.exists():
        write_text(path, _lines(columns, rows, header=True))
        return
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    if header != list(columns):
        raise ValueError(f"{path}: expected a results file with the columns {', '.join(columns)}, got another")
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
    found: dict[tuple[str, ...], Line] = {}
    for line in lines:
        found[tuple(line[name] for name in key)] = line
    return list(found.values())


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    body = [[_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = "|".join(("---", *("---:" for _ in header[1:])))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in body)])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
