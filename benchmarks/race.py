"""Whole networks, picture to labels, every contestant in turn: what else the device and its host do meets all alike.

Batch 1 by the paper's protocol: 200 rounds that are not counted, then 200 that are; in each of them every contestant
runs once, from an idle device to an idle device, its input brought to the device outside of the timed part.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import liteseg_kernels as lk
from liteseg.bench import shapes, turns
from liteseg.bench.registry import COMPILED, EAGER_LAST, Work, error
from liteseg.bench.timing import QUANTILES, captured, peak_mb, synchronize

from . import runners
from .checks import backends
from .day import Day
from .rows import DeviceFault, Row, Values, failure, is_device_fault, sheet

OURS = ("liteseg cuda graph", "liteseg triton graph", "liteseg auto graph")
PEERS = (EAGER_LAST, f"{EAGER_LAST} graph")
ROUNDS = 200
# seconds a contestant may take to be ready: without compilation, and autotuned
_READY, _TUNED = 60.0, 150.0


def networks(day: Day) -> Iterator[Row]:
    """Ours on each backend beside PyTorch's eager mode, half precision before float32."""
    yield from _races(day, "networks", (*ours(day), *PEERS), "liteseg in turns", cost=20, limit=240)


def compiled(day: Day) -> Iterator[Row]:
    """Ours beside PyTorch's best: torch.compile with its CUDA graphs, autotuned where there is time for it."""
    contestants = (*ours(day)[:2], COMPILED, EAGER_LAST)
    yield from _races(day, "compiled", contestants, "liteseg in turns with compiled", cost=70, limit=400)


def ours(day: Day) -> tuple[str, ...]:
    """A dry run leaves out Triton, whose interpreter takes minutes for a network."""
    if not day.dry:
        return OURS
    here = ("auto", *(name for name in backends(day) if name == "cuda"))
    return tuple(provider for provider in OURS if provider.split()[1] in here)


def _races(day: Day, section: str, contestants: tuple[str, ...], name: str, **settings: Any) -> Iterator[Row]:
    if day.dry:
        settings["cost"] = 1
    for network_rank, network in enumerate(day.networks):
        for dtype_rank, dtype in enumerate(day.dtypes):
            for size_rank, size in enumerate(day.sizes):
                key = runners.network_key(network, name, "labels", size, 1, day.dtype_name(dtype))
                run = functools.partial(_race, day, section, key, network, size, dtype, contestants)
                yield Row(key, run, 100 * network_rank + 10 * dtype_rank + size_rank, **settings)


@dataclass
class _Runner:
    key: dict[str, str]
    run: Callable[[], Any]
    static: Tensor
    facts: Values


def _race(
    day: Day,
    section: str,
    key: dict[str, str],
    network: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    contestants: tuple[str, ...],
) -> Values:
    place = sheet("networks", section, day.results, day.logs)
    runners.clean(day)
    runners.exact_float32()
    host = runners.inputs(size, 1, dtype, "labels", 8)
    if day.device == "cuda":
        host = [image.pin_memory() for image in host]
    expected = runners.expected(day, network, size, dtype, "labels")
    known = place.known()
    ready: list[_Runner] = []
    lines: list[Values] = []
    wrong: list[str] = []
    for provider in contestants:
        own = runners.network_key(network, provider, "labels", size, 1, day.dtype_name(dtype))
        # what ended the process before would do so again
        if known.get(tuple(own.values())) in ("failed", "crashed", "timeout"):
            wrong.append(provider)
            continue
        place.enter(own, _TUNED if provider == COMPILED else _READY)
        try:
            ready.append(_make(day, own, network, size, dtype, provider, host[0], expected))
        except Exception as problem:
            if is_device_fault(problem):
                place.add(own, failure(problem))
                raise DeviceFault(provider) from problem
            lines.append({**own, **failure(problem)})
    if not ready:
        return {"status": "failed", "detail": "no contestant is ready", "lines": lines}
    place.enter(key, 300)
    rounds = 2 if day.dry else ROUNDS
    started = time.perf_counter()
    with torch.inference_mode():
        timed = {one.key["provider"]: functools.partial(_timed, day, one, itertools.cycle(host)) for one in ready}
        taken = turns.rounds(timed, burn_in=rounds, runs=rounds)
    seconds = time.perf_counter() - started
    for one in ready:
        times = taken[one.key["provider"]]
        low, middle, high = np.quantile(times, QUANTILES).tolist()
        found = {"p50": middle, "p20": low, "p80": high, "unit": "ms", "images/s": 1e3 * rounds / sum(times)}
        lines.append({**one.key, **found, **one.facts})
    wrong += [str(x["provider"]) for x in lines if x["status"] != "ok"]
    detail = f"{rounds} + {rounds} rounds of {len(ready)} in {seconds:.0f} s"
    if wrong:
        detail += f"; not ok: {', '.join(wrong)}"
    return {"status": "failed" if wrong else "ok", "detail": detail, "lines": lines}


def _timed(day: Day, one: _Runner, images: Iterator[Tensor]) -> float:
    """Milliseconds of one run on the next image, from an idle device to an idle device."""
    one.static.copy_(next(images))
    synchronize(day.device)
    start = time.perf_counter()
    one.run()
    synchronize(day.device)
    return 1e3 * (time.perf_counter() - start)


def _make(
    day: Day,
    key: dict[str, str],
    network: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    provider: str,
    first: Tensor,
    expected: Tensor,
) -> _Runner:
    """A contestant with its own model, input and, where its name says so, CUDA graph; its result is checked."""
    function = runners.runner(day, network, size, dtype, "labels", provider)
    static = first.to(day.device, copy=True)

    def call() -> Tensor:
        return function(static)

    started = time.perf_counter()
    with torch.inference_mode():
        off = error(call().clone(), expected)
        peak = peak_mb(call, day.device)
        run: Callable[[], Any] = call
        launch = "graph" if provider == COMPILED else "stream"
        if runners.is_graph(provider):
            run, result = captured(call, day.device)
            launch = "graph"
            run()
            synchronize(day.device)
            # a replay may go wrong where a call does not
            off = max(off, error(result, expected))
        else:
            # Inductor captures its graphs in the second and third call
            for _ in range(3):
                call()
        synchronize(day.device)
    mode = [runners.compile_mode(day, provider)] if provider.startswith(COMPILED) else []
    notes = [
        *mode,
        f"ready after {time.perf_counter() - started:.0f} s",
        *_elsewhere(day, network, size, dtype, provider),
    ]
    status = "ok" if off <= runners.LIMITS["labels"][dtype] else "wrong"
    facts = {"launch": launch, "peak MB": peak, "error": off, "status": status, "detail": "; ".join(notes)}
    return _Runner(key, run, static, facts)


@functools.cache
def _elsewhere(day: Day, network: str, size: tuple[int, int], dtype: torch.dtype, provider: str) -> tuple[str, ...]:
    """Which ops of a network do not run on the backend that the provider names."""
    if not provider.startswith("liteseg") or "auto" in provider:
        return ()
    name = provider.split()[1]
    found: dict[str, str] = {}
    with lk.use_backend(name):
        for layer in shapes.inference(network, size):
            work = Work(layer.call, dtype, day.device, channels_last=True)
            used = lk._dispatch.explain_call(layer.call.op, tuple(work.arguments)).backend
            if used != name:
                found[layer.call.op] = used
    return tuple(f"{op} on {used}" for op, used in found.items())
