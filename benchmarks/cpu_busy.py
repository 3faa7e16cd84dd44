"""A core that another process wants too: `python -m benchmarks.cpu_busy`.

LiteSeg's plan and its modules in PyTorch (channels_last), on one thread and on two, to low-resolution logits: once with
all cores free, once with a process that never rests on the first of them. They take turns, call by call. Who waits for
everybody's share of each layer loses a time slice of the scheduler's, milliseconds, each time. Rows are appended to the
CSV.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liteseg.bench import turns
from liteseg.bench.record import ENVIRONMENT, append, environment

from .cpu_networks import hxw
from .rows import ROOT

TEAMS = (1, 2)
COLUMNS = ("network", "size", "provider", "team", "free ms", "busy ms", "rounds")


def _times(calls: dict[tuple[str, int], Callable[[], Any]], rounds: int) -> dict[tuple[str, int], float]:
    """Median milliseconds of each (provider, threads)."""
    import torch

    def timed(team: int, call: Callable[[], Any]) -> float:
        torch.set_num_threads(team)
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    # the first round warms up
    runs = {key: functools.partial(timed, key[1], call) for key, call in calls.items()}
    return {key: statistics.median(taken) for key, taken in turns.rounds(runs, burn_in=1, runs=rounds).items()}


def measure(network: str, size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    import torch

    import liteseg
    import liteseg_kernels as lk

    model = liteseg.create_model(network).eval()
    fused, plain = lk.fuse(model), lk.to_reference(model).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, *size).to(memory_format=torch.channels_last)
    calls = {
        (name, team): lambda one=one: one.low_resolution_logits(x)
        for name, one in (("liteseg", fused), ("eager channels_last", plain))
        for team in TEAMS
    }
    with torch.inference_mode():
        free = _times(calls, rounds)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            os.sched_setaffinity(busy.pid, {min(os.sched_getaffinity(0))})
            beside = _times(calls, rounds)
        finally:
            busy.kill()
            busy.wait()
    common = {"network": network, "size": f"{size[0]}x{size[1]}", "rounds": rounds}
    return [
        {
            **common,
            **{"provider": name, "team": team, "free ms": f"{free[name, team]:.1f}"},
            **{"busy ms": f"{beside[name, team]:.1f}", **environment("cpu", team)},
        }
        for name, team in calls
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_busy", description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="liteseg_mobilenetv2")
    parser.add_argument("--size", type=hxw, default=(360, 640), metavar="HxW")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-busy.csv")
    options = parser.parse_args(argv)
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        parser.error("needs two cores, and a system that lets a process choose one")
    rows = measure(options.network, options.size, options.rounds)
    append(options.out, (*COLUMNS, *ENVIRONMENT), rows)
    for row in rows:
        print(
            f"{row['provider']:<20} {row['team']} threads: {row['free ms']} ms, beside a busy core {row['busy ms']} ms"
        )


if __name__ == "__main__":
    main()
