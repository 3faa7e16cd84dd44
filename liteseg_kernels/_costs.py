"""What an op costs on a GPU, backend by backend: measured there, or else predicted from what another GPU measured.

costs.csv beside this file, written by `python -m benchmarks.costs` from the results of a GPU day:

device      name of the GPU, as torch has it
capability  its compute capability, such as 9.0
op          name of an op, or "*": the forward passes of a whole network
kind        "half" or "single" (bytes of an element)
backend     who ran it
us          microseconds, of all calls in `basis` together
basis       what was run; backends are compared by rows of one basis only
source      where the figure comes from
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

PATH = Path(__file__).with_name("costs.csv")
COLUMNS = ("device", "capability", "op", "kind", "backend", "us", "basis", "source")


@dataclass(frozen=True)
class Costs:
    """Microseconds of an op by backend. `measured`: on the GPU at hand, else on `device`."""

    us: dict[str, float]
    device: str
    basis: str
    measured: bool

    def __str__(self) -> str:
        rising = sorted(self.us.items(), key=lambda item: item[1])
        figures = ", ".join(f"{backend} {us:.0f} us" for backend, us in rising)
        how = f"measured on {self.device}" if self.measured else f"predicted from {self.device}"
        return f"{figures} ({how}: {self.basis})"


@dataclass(frozen=True)
class Gpu:
    """Name and compute capability."""

    name: str
    capability: tuple[int, int]


def read(path: Path = PATH) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def _table() -> list[dict[str, str]]:
    return read()


@functools.cache
def gpu(index: int) -> Gpu:
    return Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))


def _capability(text: str) -> tuple[int, int]:
    major, minor = map(int, text.split("."))
    return major, minor


def chosen(rows: Iterable[dict[str, str]], here: Gpu, op: str, kind: str) -> Costs | None:
    """The rows for `op`: of this GPU before those of others, of these the nearest compute capability; the op's own
    before a network's. None where no two backends can be compared."""
    ops = (op,) if op.endswith("_backward") else (op, "*")
    fitting = [row for row in rows if row["op"] in ops and row["kind"] == kind]

    def distance(row: dict[str, str]) -> tuple[bool, int, int, bool, str, str]:
        major, minor = _capability(row["capability"])
        far = abs(major - here.capability[0]), abs(minor - here.capability[1])
        return row["device"] != here.name, *far, row["op"] == "*", row["device"], row["basis"]

    fitting.sort(key=distance)
    for (foreign, *_, device, basis), group in itertools.groupby(fitting, key=distance):
        us = {row["backend"]: float(row["us"]) for row in group}
        if len(us) > 1:
            return Costs(us, device, basis, measured=not foreign)
    return None


@functools.lru_cache(maxsize=4096)
def of(index: int, op: str, kind: str) -> Costs | None:
    """What is known for `op` on the GPU with this index; `kind`: "half" or "single"."""
    return chosen(_table(), gpu(index), op, kind)
