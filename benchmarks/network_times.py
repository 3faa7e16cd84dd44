"""What a GPU day measures of whole networks one at a time: every size, batch and dtype, and where a run's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from liteseg.bench.record import now
from liteseg.bench.registry import COMPILED, EAGER, EAGER_LAST, error
from liteseg.bench.timing import captured, peak_mb, quantiles, synchronize, wall

from .day import Day
from .rows import KERNEL, Row, Values, append, environment, slug
from .runners import (
    LIMITS,
    WITHOUT,
    clean,
    columns,
    exact_float32,
    expected,
    inputs,
    is_graph,
    network_key,
    runner,
    switched_off,
)

OURS_NETWORK = ("liteseg auto", "liteseg triton", "liteseg cuda")


def networks(day: Day) -> Iterator[Row]:
    """Whole networks, picture to labels and input to full-size logits; batch 1 by the paper's protocol."""
    ours = [provider for provider in OURS_NETWORK if not day.dry or provider == "liteseg auto"]
    graphed = [f"{provider} graph" for provider in ours]
    size_rank = {size: (0.0 if size in (day.sizes[0], day.sizes[-1]) else 3.0) for size in day.sizes}
    # the paper's own numbers are float32
    dtype_rank = {torch.float16: 0.0, torch.float32: 2.0, torch.bfloat16: 3.0}
    for network_rank, network in enumerate(day.networks):
        for size in day.sizes:
            for batch_rank, batch in enumerate(day.batches):
                for dtype_place, dtype in enumerate(day.dtypes):
                    for mode_rank, mode in enumerate(("labels", "logits")):
                        rank = network_rank + size_rank[size] + 1.5 * batch_rank + dtype_rank[dtype] + 1.25 * mode_rank
                        # where grids are smallest, and what batch 1 is for
                        without = WITHOUT if (batch_rank, dtype_place, mode_rank) == (0, 0, 0) else ()
                        for provider in (*graphed, *without, *ours, EAGER, EAGER_LAST, COMPILED, f"{COMPILED} graph"):
                            if not day.takes(
                                provider.startswith(COMPILED), network_rank, batch_rank, dtype_place, mode_rank
                            ):
                                continue
                            yield _network_row(day, network, size, batch, dtype, mode, provider, rank)
    for provider in ("liteseg auto", EAGER_LAST, *(() if day.dry else (COMPILED,))):
        for network in day.networks[:1]:
            for size in {day.sizes[0]: 0, day.sizes[-1]: 0}:
                key = network_key(network, provider, "profile", size, 1, day.dtype_name(day.dtypes[0]))
                run: Callable[[], Values] = lambda args=(network, size, provider): _profile(day, *args)  # noqa: E731
                slow = provider == COMPILED and not day.dry
                yield Row(key, run, 0.9, cost=60 if slow else 6, limit=300, ours=provider.startswith("liteseg"))


def _network_row(
    day: Day,
    network: str,
    size: tuple[int, int],
    batch: int,
    dtype: torch.dtype,
    mode: str,
    provider: str,
    rank: float,
) -> Row:
    slow = provider.startswith(COMPILED) and not day.dry
    run: Callable[[], Values] = lambda: _network(day, network, size, batch, dtype, mode, provider)  # noqa: E731
    key = network_key(network, provider, mode, size, batch, day.dtype_name(dtype))
    ours = provider.startswith("liteseg")
    return Row(key, run, rank + (0.5 if slow else 0), cost=90 if slow else 10, limit=400 if slow else 120, ours=ours)


def _network(
    day: Day, network: str, size: tuple[int, int], batch: int, dtype: torch.dtype, mode: str, provider: str
) -> Values:
    """Batch 1 by the paper's protocol: 200 runs, then 200 timed ones, each from an idle device to an idle device, the
    input brought to the device outside of the timed part. The paper draws each input anew; here eight are drawn once
    and take turns. Larger batches: throughput by CUDA events, back to back."""
    clean(day)
    exact_float32()
    function = runner(day, network, size, dtype, mode, provider)
    host = inputs(size, batch, dtype, mode, 8 if batch == 1 else 1)
    static = host[0].to(day.device)
    if mode == "logits" and provider != EAGER:
        static = static.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        return function(static)

    with torch.inference_mode(), switched_off(provider):
        off = error(call()[:1].clone(), expected(day, network, size, dtype, mode))
        checked: Values = {"error": off, "status": "ok" if off <= LIMITS[mode][dtype] else "wrong"}
        peak = peak_mb(call, day.device)
        run: Callable[[], Any] = call
        if is_graph(provider):
            run = captured(call, day.device)[0]
        if batch > 1:
            times = quantiles(run, day.device, 300)
            rate = 1e3 * batch / times.p50
        else:
            turn = iter(range(10**9))

            def bring() -> None:
                static.copy_(host[next(turn) % len(host)])

            count = 3 if day.dry else 200
            started = time.perf_counter()
            times = wall(run, day.device, warmup=count, repeat=count, before=bring)
            rate = 1e3 / times.mean
            checked["detail"] = f"{count} + {count} runs, {time.perf_counter() - started:.0f} s with their inputs"
    launch = "graph" if is_graph(provider) or provider == COMPILED else "stream"
    return {**columns(times), "launch": launch, "images/s": rate, "peak MB": peak, **checked}


def _profile(day: Day, network: str, size: tuple[int, int], provider: str) -> Values:
    """Where a run's time goes, by kernel; written to a table of its own."""
    from torch.profiler import ProfilerActivity, profile

    clean(day)
    exact_float32()
    dtype = day.dtypes[0]
    function = runner(day, network, size, dtype, "labels", provider)
    static = inputs(size, 1, dtype, "labels", 1)[0].to(day.device)
    repeat = 1 if day.dry else 20
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if day.device == "cuda" else [])
    with torch.inference_mode():
        for _ in range(3):
            function(static)
        synchronize(day.device)
        with profile(activities=activities) as profiler:
            for _ in range(repeat):
                function(static)
            synchronize(day.device)
    cuda = day.device == "cuda"
    found: dict[str, tuple[int, float]] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if spent > 0 and (not cuda or event.device_type == torch.autograd.DeviceType.CUDA):
            found[event.key[:160]] = event.count, spent
    total = sum(spent for _, spent in found.values())
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    path = day.results / f"{slug(environment()['device'])}-profile.csv"
    # one date for all lines tells which belong together
    shape = f"{network} {size[0]}x{size[1]} b1 {day.dtype_name(dtype)}"
    place = {"network": shape, "provider": provider, "date": now()}
    for name, (calls, spent) in sorted(found.items(), key=lambda item: -item[1][1])[:40]:
        values = {"kernel": name, "calls": calls / repeat, "us": spent / repeat, "share": spent / total}
        append(path, KERNEL, {**place, **values})
    calls = sum(count for count, _ in found.values()) / repeat
    return {"p50": total / repeat / 1e3, "unit": "ms", "launch": "stream", "detail": f"{calls:g} kernels a run"}
