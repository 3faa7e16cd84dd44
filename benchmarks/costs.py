"""python -m benchmarks.costs: what each backend takes on the GPUs that were measured, for `auto` to choose by.

Reads the results of GPU days (benchmarks/results/*-networks.csv, and *-ops.csv where there are any) and writes
liteseg_kernels/costs.csv. A figure needs one of another backend beside it, of the same day, sources and case. Networks
count whole and from a CUDA graph, ops as the sum of their cases.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from liteseg.bench.record import write_text
from liteseg_kernels import _costs
from liteseg_kernels._dispatch import AUTO_ORDER

RESULTS = Path(__file__).resolve().parent / "results"
# compute capabilities of GPUs by what their names begin with; results name the device alone
CAPABILITIES = {"NVIDIA H200": "9.0", "NVIDIA H100": "9.0", "NVIDIA A100": "8.0", "NVIDIA L40": "8.9"}
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}

Row = dict[str, str]


def _backend(row: Row) -> str | None:
    """The backend whose kernels alone were timed."""
    ours, _, rest = row["provider"].partition(" ")
    backend, _, how = rest.partition(" ")
    whole = "x" in row["shape"] and row["mode"] == "labels"
    fits = ours == "liteseg" and backend in AUTO_ORDER["cuda"] and how == ("graph" if whole else "")
    return backend if fits and row["status"] == "ok" else None


def capability(device: str) -> str:
    found = [value for name, value in CAPABILITIES.items() if device.startswith(name)]
    if not found:
        raise ValueError(f"costs: device: expected one that CAPABILITIES names, got {device!r}")
    return found[0]


def costs(rows: Iterable[Row], networks: bool) -> list[Row]:
    """The lines of costs.csv that these results give."""
    # of one case on one day by backend; the last one counts
    cases: dict[tuple[str, ...], dict[str, Row]] = collections.defaultdict(dict)
    for row in rows:
        if (backend := _backend(row)) is not None:
            kind = "single" if row["dtype"] == "fp32" else "half"
            place = row["device"], row["op"], kind, row["mode"], row["shape"], row["dtype"], row["sources"]
            place = *place, row["date"][:10]
            cases[place][backend] = row
    whole: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for (device, op, kind, *_), found in cases.items():
        if len(found) > 1:
            of_op = whole.setdefault((device, "*" if networks else op, kind), collections.defaultdict(list))
            for backend, row in found.items():
                of_op[backend].append(row)
    lines = []
    for (device, op, kind), found in sorted(whole.items()):
        first = next(iter(found.values()))
        names = sorted({f"{row['op']} {row['shape']}" if networks else row["shape"] for row in first})
        for backend, measured in sorted(found.items()):
            us = sum(float(row["p50"]) * _MICROSECONDS[row["unit"]] for row in measured)
            last = max(measured, key=lambda row: row["date"])
            lines.append(
                {
                    **{"device": device, "capability": capability(device), "op": op, "kind": kind, "backend": backend},
                    **{"us": f"{us:.1f}", "basis": ", ".join(names)},
                    "source": f"{last['date'][:10]}, commit {last['commit']}, torch {last['torch']}",
                }
            )
    return lines


def collected(folder: Path = RESULTS) -> list[Row]:
    lines = []
    for name in ("networks", "ops"):
        for path in sorted(folder.glob(f"nvidia-*-{name}.csv")):
            with path.open(newline="") as file:
                lines += costs(csv.DictReader(file), name == "networks")
    return lines


def text(lines: Sequence[Row]) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, _costs.COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return out.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=(__doc__ or "").splitlines()[0])
    parser.parse_args(arguments)
    lines = collected()
    write_text(_costs.PATH, text(lines))
    print(f"{len(lines)} lines: {_costs.PATH.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
