"""Memory of a process that predicts for a long time: `python -m benchmarks.cpu_soak`.

Each `--sizes` is a process of its own: uint8 pictures in memory, one size after the other, to label maps, `--calls`
times after `--warm-up` calls that fill the memory kept between calls. The peak of resident memory is read ten times on
the way, each time since the last. Rows are appended to the CSV; the exit code is 1 where a peak is more than LIMIT MB
above the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liteseg.bench.record import ENVIRONMENT, append, environment
from liteseg.bench.timing import reset_peak, resident_mb

from .cpu_networks import hxw
from .rows import ROOT

# what the C library and the interpreter may still take
LIMIT = 4.0
READINGS = 10
COLUMNS = ("network", "sizes", "calls", "warm-up", "peak MB", "grown MB", "ms a call")


def soak(call: Callable[[int], Any], calls: int, warm_up: int) -> dict[str, Any]:
    """Peaks of resident memory in equal parts of the calls after the warm-up."""
    for i in range(warm_up):
        call(i)
    peaks = []
    reset_peak()
    start = time.perf_counter()
    for i in range(calls):
        call(i)
        if (i + 1) * READINGS // calls > i * READINGS // calls:
            peaks.append(resident_mb(peak=True))
            reset_peak()
    return {
        "calls": calls,
        "warm-up": warm_up,
        "peak MB": " ".join(f"{mb:.1f}" for mb in peaks),
        "grown MB": round(max(peaks) - peaks[0], 1),
        "ms a call": round(1e3 * (time.perf_counter() - start) / calls, 1),
    }


def _predict(network: str, sizes: Sequence[tuple[int, int]], calls: int, warm_up: int, threads: int) -> dict[str, Any]:
    import numpy as np
    import torch

    import liteseg

    torch.set_num_threads(threads)
    fused = liteseg.fuse(liteseg.create_model(network).eval())
    pictures = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    row = soak(lambda i: liteseg.predict(fused, pictures[i % len(pictures)]), calls, warm_up)
    return {"network": network, "sizes": " ".join(f"{h}x{w}" for h, w in sizes), **row, **environment("cpu", threads)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_soak", description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="liteseg_mobilenetv2")
    parser.add_argument(
        "--sizes", nargs="+", type=hxw, action="append", metavar="HxW", help="may be given more than once"
    )
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-soak.csv")
    options = parser.parse_args(argv)
    lines = options.sizes or [[(1024, 2048)], [(1024, 2048), (360, 640), (512, 1024), (480, 360)]]
    context = multiprocessing.get_context("spawn")
    grown = False
    for sizes in lines:
        with context.Pool(1) as pool:
            row = pool.apply(_predict, (options.network, sizes, options.calls, options.warm_up, options.threads))
        append(options.out, (*COLUMNS, *ENVIRONMENT), [row])
        grown = grown or row["grown MB"] > LIMIT
        print(f"{row['network']}, {row['sizes']}: {row['calls']} calls, {row['ms a call']} ms each, peak MB:")
        print(f"  {row['peak MB']} (grown by {row['grown MB']})", flush=True)
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
