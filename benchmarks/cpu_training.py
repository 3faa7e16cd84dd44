"""A training step on the CPU against PyTorch's, side by side: `python -m benchmarks.cpu_training`.

Providers: our modules with `UpsampleCrossEntropyLoss`; their plain torch.nn form (`to_reference`) in channels_last with
interpolate and cross_entropy, eager and compiled. Every provider lives in a process of its own and the processes take
turns step by step, as in `cpu_networks`; peak memory is that process's high-water mark over what it held before its
first step. A step is forward, loss and backward, without the optimizer, which is the same for all. Also the row
`upsample + argmax` alone. Rows are appended to the CSV, the table is printed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from liteseg.bench.timing import resident_mb

from .cpu_networks import PAUSE, ROOT, _machine

PROVIDERS = ("liteseg", "eager channels_last", "compiled")
COLUMNS = (
    *("work", "size", "dtype", "threads", "provider", "p50 ms", "p20 ms", "p80 ms", "rounds", "against liteseg"),
    *("peak MB", "detail", "machine", "torch", "commit", "date"),
)
CLASSES = 19


def _autocast(dtype: str) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16 autocast" else nullcontext()


def _training_step(provider: str, network: str, size: tuple[int, ...], dtype: str) -> Callable[[], Any]:
    import torch
    from torch.nn import functional as tf

    import liteseg
    import liteseg_kernels as lk

    torch.manual_seed(0)
    n, height, width = size
    model = liteseg.create_model(network, num_classes=CLASSES).train()
    if provider != "liteseg":
        model = lk.to_reference(model).train()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(n, 3, height, width).contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (n, height, width))
    fused_loss = lk.UpsampleCrossEntropyLoss()

    def loss_of(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = model.low_resolution_logits(x)
        if provider == "liteseg":
            return fused_loss(logits, target)
        up = tf.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
        return tf.cross_entropy(up, target, ignore_index=255)

    forward = torch.compile(loss_of) if provider == "compiled" else loss_of

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with _autocast(dtype):
            loss = forward(x, target)
        loss.backward()
        return loss.item()

    return step


def _upsample_argmax(provider: str, size: tuple[int, ...]) -> Callable[[], Any]:
    import torch
    from torch.nn import functional as tf

    import liteseg_kernels as lk

    n, height, width = size
    logits = torch.randn(n, CLASSES, height // 4, width // 4).contiguous(memory_format=torch.channels_last)
    if provider == "liteseg":
        return lambda: int(lk.functional.upsample_argmax(logits, (height, width))[0, 0, 0])

    def labels(logits: torch.Tensor) -> torch.Tensor:
        return tf.interpolate(logits, (height, width), mode="bilinear", align_corners=True).argmax(1)

    call = torch.compile(labels) if provider == "compiled" else labels
    return lambda: int(call(logits)[0, 0, 0])


def _serve(pipe: Connection, provider: str, work: str, size: tuple[int, ...], dtype: str, threads: int) -> None:
    """A provider's process: says whether it is ready, then times one step whenever asked."""
    import torch

    torch.set_num_threads(threads)
    try:
        step = (
            _upsample_argmax(provider, size)
            if work == "upsample + argmax"
            else _training_step(provider, work, size, dtype)
        )
        before = resident_mb(peak=True)
        for _ in range(2):
            result = step()
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
        return
    pipe.send((True, result))
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send(1e3 * (time.perf_counter() - start))
    pipe.send(resident_mb(peak=True) - before)


def compare(work: str, size: tuple[int, ...], dtype: str, threads: int, rounds: int, providers: Any) -> list[Any]:
    """One row a provider."""
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    rows, running = [], {}
    for provider in providers:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, provider, work, size, dtype, threads), daemon=True)
        process.start()
        theirs.close()
        try:
            ready, result = ours.recv()
        except EOFError:
            ready, result = False, "its process died"
        if ready:
            running[provider] = (ours, process)
        else:
            rows.append({"provider": provider, "detail": result})
    times: dict[str, list[float]] = {provider: [] for provider in running}
    for _ in range(rounds):
        for provider, (pipe, _) in running.items():
            pipe.send(True)
            times[provider].append(pipe.recv())
            time.sleep(PAUSE)
    peaks = {}
    for provider, (pipe, process) in running.items():
        pipe.send(False)
        peaks[provider] = pipe.recv()
        process.join()
    reference = statistics.median(times["liteseg"]) if times.get("liteseg") else None
    for provider, taken in times.items():
        low, _, _, high = statistics.quantiles(taken, n=5)
        middle = statistics.median(taken)
        rows.append(
            {
                "provider": provider,
                "p50 ms": round(middle, 2),
                "p20 ms": round(low, 2),
                "p80 ms": round(high, 2),
                "rounds": rounds,
                "against liteseg": "" if reference is None else round(middle / reference, 2),
                # of a compiled step the compiler's own memory is part
                "peak MB": round(peaks[provider]) if provider != "compiled" else "",
            }
        )
    shown = "x".join(str(extent) for extent in size)
    return [{"work": work, "size": shown, "dtype": dtype, "threads": threads, **row} for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_training", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["liteseg_mobilenetv2"])
    parser.add_argument("--size", nargs=3, type=int, default=[4, 352, 480], metavar=("N", "H", "W"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16 autocast"])
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each provider")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-training.csv")
    options = parser.parse_args(argv)
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    common = {
        "machine": _machine(),
        "torch": torch.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
    work = [(network, tuple(options.size), dtype) for dtype in options.dtypes for network in options.networks]
    for name, size, dtype in [("upsample + argmax", (1, 360, 640), "float32"), *work]:
        rows = compare(name, size, dtype, options.threads, options.rounds, options.providers)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        new = not options.out.exists()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerows({**row, **common} for row in rows)
        print(f"{name}, {'x'.join(map(str, size))}, {dtype}, {options.threads} threads")
        for row in rows:
            print(f"  {row['provider']:<20} " + (row.get("detail") or _shown(row)), flush=True)


def _shown(row: dict[str, Any]) -> str:
    return f"{row['p50 ms']:9.1f} ms  x{row['against liteseg']}  {row['peak MB'] or '-'} MB"


if __name__ == "__main__":
    main()
