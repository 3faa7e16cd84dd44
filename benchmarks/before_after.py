"""One checkout of this project against another, side by side: `python -m benchmarks.before_after FOLDER [FOLDER]`.

The first folder is the checkout before a change, the second (this one, unless given) the one after it; in both the
kernels have to be built. Each runs in a process of its own, the two take turns call by call, and the one that goes
first changes every round. Where a process happens to get its memory makes up to a fifth of a row's time, so all is
measured in several pairs of fresh processes, and a ratio is the median of theirs. Rows are whole networks and single
modules, in eval mode, fused and in training, with what Python adds to each call. `--threads 1` leaves the second core
to the rest of the machine.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# a call is repeated until a turn takes as long, so that the clock and the change of process do not show
TURN = 0.05
COLUMNS = ("row", "before p50 ms", "after p50 ms", "after / before", "least", "most", "processes", "rounds")


def _networks() -> dict[str, Callable[[], Callable[[], Any]]]:
    import torch

    import liteseg
    import liteseg_kernels as lk

    def network(name: str, size: tuple[int, int], dtype: torch.dtype, fused: bool) -> Callable[[], Any]:
        torch.manual_seed(0)
        model = liteseg.create_model(name).eval().to(dtype)
        model = lk.fuse(model) if fused else model
        x = torch.randn(1, 3, *size).to(dtype)
        # up to here it is ours; PyTorch's upsampling behind it depends on where its 17 MB come from, by a millisecond
        return lambda: model.low_resolution_logits(x)

    rows = {}
    for name in ("liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19"):
        for size in ((64, 96), (360, 640)):
            text = f"{name} fused {size[0]}x{size[1]}"
            rows[text] = lambda n=name, s=size: network(n, s, torch.float32, True)
        rows[f"{name} eval 360x640"] = lambda n=name: network(n, (360, 640), torch.float32, False)
    rows["liteseg_mobilenetv2 fused 1024x2048"] = lambda: network(
        "liteseg_mobilenetv2", (1024, 2048), torch.float32, True
    )
    rows["liteseg_mobilenetv2 fused 360x640 bfloat16"] = lambda: network(
        "liteseg_mobilenetv2", (360, 640), torch.bfloat16, True
    )
    return rows


def _modules() -> dict[str, Callable[[], Callable[[], Any]]]:
    import torch

    import liteseg_kernels as lk

    makers: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
        "SeparableConv2d": (lambda: lk.SeparableConv2d(96, 96), (1, 96, 90, 160)),
        "InvertedResidual": (lambda: lk.InvertedResidual(32, 32, 1, 6), (1, 32, 45, 80)),
        "ShuffleUnit": (lambda: lk.ShuffleUnit(384, 384), (1, 384, 45, 80)),
        "DASPP": (lambda: lk.DASPP(320, 96), (1, 320, 12, 20)),
        "ConvNormAct": (lambda: lk.ConvNormAct(32, 64, 3, activation="relu"), (1, 32, 45, 80)),
    }

    def module(name: str, mode: str) -> Callable[[], Any]:
        torch.manual_seed(0)
        make, shape = makers[name]
        x = torch.randn(shape)
        one = make().train(mode == "train")
        if mode == "fused":
            one = lk.fuse(one.eval())
        if mode != "train":
            return lambda: one(x)
        return lambda: one(x).sum().backward()

    return {
        f"{name} {mode}": lambda n=name, m=mode: module(n, m) for name in makers for mode in ("eval", "fused", "train")
    }


def _serve() -> None:
    """Reads the name of a row and a number of calls a line, answers with seconds a call."""
    import torch

    threads = int(sys.argv[2])
    torch.set_num_threads(threads)
    rows = {**_networks(), **_modules()}
    answers, sys.stdout = sys.stdout, sys.stderr
    made: tuple[str, Callable[[], Any]] | None = None
    for line in sys.stdin:
        name, calls = line.rstrip("\n").rsplit(" ", 1)
        if made is None or made[0] != name:
            made = (name, rows[name]())
        with torch.set_grad_enabled(name.endswith(" train")):
            begin = time.perf_counter()
            for _ in range(int(calls)):
                made[1]()
            print((time.perf_counter() - begin) / int(calls), file=answers, flush=True)


class _Side:
    """The rows of one checkout, in a process of its own."""

    def __init__(self, folder: Path, threads: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        # -P: the checkout's own packages, not those of the folder that this runs in
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        )

    def seconds(self, row: str, calls: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{row} {calls}\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline()
        if not told:
            raise RuntimeError(f"{row}: the process of a checkout ended with {self._process.wait()}")
        return float(told)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _turns(name: str, sides: tuple[_Side, _Side], rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of either side, and the median of the rounds' ratios."""
    for side in sides:
        # sets up the pool, the memory and the plan
        side.seconds(name, 2)
    calls = max(1, math.ceil(TURN / max(side.seconds(name, 2) for side in sides)))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            times[which].append(sides[which].seconds(name, calls))
    before, after = (1000 * statistics.median(t) for t in times)
    return before, after, statistics.median(after / before for before, after in zip(*times, strict=True))


def _row(name: str, found: list[tuple[float, float, float]], rounds: int) -> tuple[Any, ...]:
    before, after, ratio = (statistics.median(values) for values in zip(*found, strict=True))
    ratios = [ratio for _, _, ratio in found]
    spread = (f"{value:.3f}" for value in (ratio, min(ratios), max(ratios)))
    return (name, f"{before:.4g}", f"{after:.4g}", *spread, len(found), rounds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--rows", default="", help="only rows with this in their names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=5, help="pairs of processes, one after another")
    parser.add_argument("--rounds", type=int, default=10, help="turns of a row in each pair")
    parser.add_argument("--out", type=Path, help="CSV of the rows")
    options = parser.parse_args(argv)
    for folder in (options.before, options.after):
        if not (folder / "liteseg_kernels").is_dir():
            parser.error(f"{folder}: expected a checkout of liteseg, got a folder without liteseg_kernels")
    names = [name for name in (*_networks(), *_modules()) if options.rows in name]
    if not names:
        parser.error(f"--rows: expected a part of a row's name, got {options.rows!r}")
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for pair in range(options.processes):
        print(f"pair {pair + 1} of {options.processes}", file=sys.stderr, flush=True)
        sides = (_Side(options.before, options.threads), _Side(options.after, options.threads))
        try:
            for name in names:
                times[name].append(_turns(name, sides, options.rounds))
        finally:
            for side in sides:
                side.close()
    found = [_row(name, times[name], options.rounds) for name in names]
    for row in (COLUMNS, *found):
        print(" | ".join(map(str, row)))
    mean = math.exp(statistics.fmean(math.log(float(row[3])) for row in found))
    print(f"geometric mean of {len(found)} rows: {mean:.3f}")
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *found])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve()
    else:
        main()
