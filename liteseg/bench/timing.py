"""Times and memory of calls on a GPU, with stand-ins on the CPU so that a dry run takes the same way."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUANTILES = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Times:
    """Milliseconds a call: median and the 20 % and 80 % quantiles; the mean where every call was timed by itself."""

    p20: float
    p50: float
    p80: float
    mean: float = float("nan")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def captured(call: Callable[[], Any], device: str, warmup: int = 3) -> tuple[Callable[[], None], Any]:
    """(replay, result): `call` as a CUDA graph whose every replay writes `result` anew. On the CPU: a plain call, whose
    result is copied to the same place."""
    if device != "cuda":
        result = call()

        def replay() -> None:
            again = call()
            for old, new in zip(*(r if isinstance(r, (tuple, list)) else (r,) for r in (result, again)), strict=True):
                old.copy_(new)

        return replay, result
    # warm-up and capture on streams of their own, as graphs need it; compilation and autotuning happen here
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    # what `call` holds, weights for one, is read by every replay
    def replay_graph(kept: Any = call) -> None:
        graph.replay()

    return replay_graph, result


def best_launch(call: Callable[[], Any], device: str) -> tuple[Callable[[], Any], str]:
    """(call, how it is launched): as a CUDA graph where it can be captured ("graph"), else as it is ("stream").

    Every provider gets the same treatment, so that kernels are compared, not the cost of launching them.
    """
    call()
    synchronize(device)
    stream = torch.cuda.current_stream() if device == "cuda" else None
    try:
        return captured(call, device)[0], "graph"
    except RuntimeError:
        if stream is not None:
            # a capture that breaks off leaves its own stream in place
            torch.cuda.set_stream(stream)
        synchronize(device)
        return call, "stream"


def quantiles(call: Callable[[], Any], device: str, milliseconds: int = 60) -> Times:
    """Times of `call` with a cold L2 cache, by CUDA events over about `milliseconds` (at least one call)."""
    if device == "cuda":
        from triton.testing import do_bench

        p20, p50, p80 = do_bench(call, warmup=milliseconds // 3, rep=milliseconds, quantiles=QUANTILES)
        return Times(p20, p50, p80)
    return wall(call, device, warmup=1, repeat=3)


def wall(
    call: Callable[[], Any], device: str, *, warmup: int, repeat: int, before: Callable[[], Any] | None = None
) -> Times:
    """Times of `call` on the host's clock, the device idle before and after each; `before` runs outside of them."""
    taken = []
    for index in range(warmup + repeat):
        if before is not None:
            before()
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if index >= warmup:
            taken.append(1e3 * (time.perf_counter() - start))
    low, middle, high = np.quantile(taken, QUANTILES).tolist()
    return Times(low, middle, high, sum(taken) / len(taken))


def stopwatch(device: str) -> Callable[[Callable[[], Any]], float]:
    """A function that gives the milliseconds of one call: by CUDA events and with a cold L2 cache on a GPU, by the
    host's clock on the CPU."""
    if not device.startswith("cuda"):

        def on_host(call: Callable[[], Any]) -> float:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)

        return on_host
    # larger than any L2 cache
    flush = torch.empty(2**28, dtype=torch.uint8, device=device)

    def on_device(call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return on_device


def peak_mb(call: Callable[[], Any], device: str) -> float | None:
    """Most memory (MB = 10^6 bytes) that `call` takes on top of what is there before, its result included.

    On the CPU the process's resident memory, after what is free was given back to the system; None where the system
    does not tell (it is Linux that does).
    """
    if not device.startswith("cuda"):
        return _peak_resident(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def resident_mb(*, peak: bool = False) -> float:
    """MB (10^6 bytes) of this process in memory, or the most since `reset_peak`. Linux only."""
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def reset_peak() -> None:
    """Set the peak of `resident_mb` back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_resident(call: Callable[[], Any]) -> float | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before = resident_mb()
        result = call()
        peak = resident_mb(peak=True)
    except (OSError, AttributeError, StopIteration, TypeError):
        return None
    del result
    return max(0.0, peak - before)
