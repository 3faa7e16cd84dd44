"""What the hardware counters say of every launch of a network: Nsight Compute around one run, picture to labels.

The raw CSV goes to the logs, a line a launch with the figures below to <device>-counters.csv. Kernels run one by one,
with the caches and at the clocks they find.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

import liteseg_kernels as lk
from liteseg.bench.record import Skip, now
from liteseg.bench.timing import synchronize

from . import runners
from .checks import backends
from .day import Day
from .rows import COUNTER, ROOT, Row, Values, append, environment, slug

SECTIONS = (
    "LaunchStats",
    "Occupancy",
    "SpeedOfLight",
    "SchedulerStats",
    "WarpStateStats",
    "InstructionStats",
    "MemoryWorkloadAnalysis",
)
# column of the table: the counter's name, and what its value is divided by where the unit is written beside it
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "grid": "launch__grid_size",
    "threads": "launch__block_size",
    "registers": "launch__registers_per_thread",
    "blocks an SM": "launch__occupancy_limit_shared_mem",
    "warps active %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue active %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "SM %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory %": "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
}
_STALL, _STALLS = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
_UNITS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def counters(day: Day) -> Iterator[Row]:
    """A row a size, on the CUDA kernels; the table is a CSV of its own."""
    if "cuda" not in backends(day):
        return
    for rank, size in enumerate(day.sizes):
        key = {"check": "counters", "case": f"{day.networks[0]} {size[0]}x{size[1]}", "backend": "cuda"}
        run: Callable[[], Values] = lambda size=size: _count(day, day.networks[0], size)  # noqa: E731
        yield Row({**key, "dtype": "fp16"}, run, rank=rank, cost=25, limit=150)


def _program() -> str:
    found = shutil.which("ncu") or f"{os.environ.get('CUDA_HOME') or '/usr/local/cuda'}/bin/ncu"
    if not os.access(found, os.X_OK):
        raise Skip("ncu is not installed")
    return found


def _count(day: Day, network: str, size: tuple[int, int]) -> Values:
    if day.dry:
        raise Skip("a dry run has no hardware counters")
    # the clocks of a machine that others use too are left alone
    command = [_program(), "--clock-control", "none", "--cache-control", "none"]
    command += ["--profile-from-start", "off", "--csv", "--page", "raw"]
    command += [option for name in SECTIONS for option in ("--section", name)]
    command += [sys.executable, "-m", "benchmarks.counters", day.plan, network, *map(str, size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    name = f"counters-{network}-{size[0]}x{size[1]}"
    (day.logs / f"{name}.csv").write_text(done.stdout)
    (day.logs / f"{name}.txt").write_text(done.stderr)
    lines = table(done.stdout)
    if done.returncode != 0 or not lines:
        text = (done.stderr + done.stdout).strip().splitlines()
        raise RuntimeError(f"ncu failed with exit code {done.returncode}: {'; '.join(text[-3:])}"[:500])
    path = day.results / f"{slug(environment()['device'])}-counters.csv"
    place = {"network": f"{network} {size[0]}x{size[1]} b1 fp16", "provider": "liteseg cuda", "date": now()}
    for line in lines:
        append(path, COUNTER, {**place, **line})
    return {"detail": f"{len(lines)} launches"}


def table(text: str) -> list[Values]:
    """Lines of `COUNTERS` and the two longest reasons to wait, from what ncu prints: remarks, a line of names, one of
    units, a line a launch."""
    start = text.find('"ID"')
    if start < 0:
        return []
    found = [line for line in csv.DictReader(io.StringIO(text[start:])) if line.get("Kernel Name") is not None]
    units, launches = found[0], found[1:]
    lines: list[Values] = []
    for index, launch in enumerate(launches):

        def value(name: str, launch: dict[str, str] = launch) -> Any:
            if not launch.get(name):
                return ""
            return float(launch[name].replace(",", "")) * _UNITS.get(units.get(name, ""), 1.0)

        line: Values = {"launch": f"{index + 1}", "kernel": launch["Kernel Name"][:160]}
        line |= {column: value(name) for column, name in COUNTERS.items()}
        waits = {
            name.removeprefix(_STALL).removesuffix(_STALLS): value(name)
            for name in launch
            if name.startswith(_STALL) and name.endswith(_STALLS) and value(name) != ""
        }
        longest = sorted(waits, key=lambda name: -waits[name])[:3]
        line["waits"] = ", ".join(f"{name} {waits[name]:.2f}" for name in longest)
        lines.append(line)
    return lines


def main() -> None:
    """What runs under ncu: `python -m benchmarks.counters PLAN NETWORK HEIGHT WIDTH`."""
    plan, network, *size = sys.argv[1:]
    height, width = map(int, size)
    day = Day.make(plan, dry=False)
    model: Any = runners.network_model(network, "liteseg cuda", torch.float16, day)
    picture = runners.inputs((height, width), 1, torch.float16, "labels", 1)[0].to(day.device)
    with torch.inference_mode(), lk.use_backend("cuda"):

        def run() -> None:
            x = lk.functional.preprocess(picture, dtype=torch.float16)
            lk.functional.upsample_argmax(model.low_resolution_logits(x), (height, width), align_corners=True)
            synchronize(day.device)

        run()
        torch.cuda.profiler.start()
        run()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
