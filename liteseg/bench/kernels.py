"""Every op at layers of the networks: time, share of what the machine can do, memory, ours beside PyTorch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import liteseg_kernels as lk
from liteseg.bench import record, shapes, turns
from liteseg.bench.record import ENVIRONMENT, Line, append, environment, grouped, latest, number, table
from liteseg.bench.registry import COMPILED, DTYPE_NAMES, EAGER, PROVIDERS, cost, ready
from liteseg.bench.timing import stopwatch
from liteseg.bench.turns import spread

__all__ = ["COLUMNS", "MODES", "Case", "Peaks", "measure", "report", "run"]

# "full" is forward and backward
MODES = ("forward", "full")
WITHOUT_GRADIENT = ("upsample_argmax", "preprocess")
KEY = ("op", "layer", "batch", "mode", "dtype", "provider", "device", "threads")
COLUMNS = (
    *("op", "layer", "batch", "mode", "dtype", "provider", "layout"),
    *("p50 ms", "p20 ms", "p80 ms", "rounds", "bytes", "MACs", "GB/s", "of copy", "GFLOP/s", "of FMA", "of roofline"),
    *("peak MB", "error", "status", "detail", "copy GB/s", "FMA GFLOP/s"),
    *ENVIRONMENT,
)


@dataclass(frozen=True)
class Peaks:
    """What was measured here as the most there is: bytes read and written by a copy, arithmetic of a large product."""

    copy: float
    fma: dict[torch.dtype, float]

    def roofline(self, dtype: torch.dtype, intensity: float) -> float:
        """GFLOP/s that bandwidth and arithmetic allow at `intensity` FLOP a byte."""
        return min(self.fma[dtype], self.copy * intensity)


def peaks(device: str, dtypes: Sequence[torch.dtype]) -> Peaks:
    """The best of several runs each; float32 products are exact (no tf32)."""
    cuda = device.startswith("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # several times the caches
    source = torch.ones(2**30 if cuda else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    watch = stopwatch(device)
    copy = 2 * source.numel() / min(watch(lambda: target.copy_(source)) for _ in range(8)) / 1e6
    edge = 8192 if cuda else 1536
    fma = {}
    for dtype in dtypes:
        a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = functools.partial(torch.mm, a, b, out=out)
        fma[dtype] = 2 * edge**3 / min(watch(product) for _ in range(8)) / 1e6
    return Peaks(copy, fma)


@dataclass(frozen=True)
class Case:
    """One layer in one dtype, forward alone or forward and backward."""

    layer: shapes.Layer
    batch: int
    mode: str
    dtype: torch.dtype

    @property
    def call(self) -> shapes.Call:
        return self.layer.call.batch(self.batch)

    @property
    def name(self) -> str:
        return f"{self.layer.call.op}, {self.layer.name}, batch {self.batch}, {self.mode}, {DTYPE_NAMES[self.dtype]}"


def cases(
    *,
    networks: Sequence[str] = shapes.NETWORKS,
    sizes: Sequence[tuple[int, int]] = ((512, 1024),),
    batches: Sequence[int] = (1,),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    modes: Sequence[str] = MODES,
    ops: Sequence[str] | None = None,
    one_of_each: bool = False,
) -> Iterator[Case]:
    """All distinct calls of the networks, or the first one of each op."""
    for size in sizes:
        layers: list[shapes.Layer] = []
        if one_of_each:
            layers += shapes.one_of_each(tuple(networks), size, geometry=False)
        else:
            for network in networks:
                layers += (*shapes.inference(network, size), *shapes.training(network, size))
        seen = set()
        for layer in layers:
            op = layer.call.op
            if layer.call in seen or (ops is not None and op not in ops):
                continue
            seen.add(layer.call)
            for batch in batches:
                for dtype in dtypes:
                    for mode in modes:
                        if mode == "forward" or op not in WITHOUT_GRADIENT:
                            yield Case(layer, batch, mode, dtype)


def measure(
    case: Case, providers: Sequence[str], known: Peaks, *, device: str = "cpu", rounds: int = 20
) -> list[dict[str, Any]]:
    """One row a provider. They take turns call by call; on a GPU each from a CUDA graph, with a cold L2 cache."""
    torch._dynamo.reset()
    counted = cost(case.call, case.dtype, full=case.mode == "full")
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with nullcontext() if case.mode == "full" else torch.inference_mode():
        for provider in providers:
            row = rows[provider] = {
                "op": case.layer.call.op,
                "layer": case.layer.name,
                "batch": case.batch,
                "mode": case.mode,
                "dtype": DTYPE_NAMES[case.dtype],
                "provider": provider,
                "layout": "nchw" if provider == EAGER else "channels_last",
                "bytes": counted.bytes,
                "MACs": counted.macs,
                "copy GB/s": known.copy,
                "FMA GFLOP/s": known.fma[case.dtype],
            }
            try:
                calls[provider], values = ready(provider, case.call, case.dtype, device, full=case.mode == "full")
                # each from a CUDA graph where it can be
                del values["launch"]
            except lk.BackendError as reason:
                values = {"status": "skipped", "detail": str(reason)}
            except Exception as problem:
                # one provider that fails must not end the others
                first = (str(problem).splitlines() or [""])[0]
                values = {"status": "failed", "detail": f"{type(problem).__name__}: {first}"}
            row.update(values)
        watch = stopwatch(device)
        timed = {provider: functools.partial(watch, call) for provider, call in calls.items()}
        taken = turns.rounds(timed, burn_in=3, runs=rounds)
    where = environment(device, torch.get_num_threads())
    for provider, row in rows.items():
        row.update(where)
        if provider in taken:
            row.update(_rates(taken[provider], counted.bytes, counted.macs, case.dtype, known))
    return list(rows.values())


def _rates(times: list[float], size: int, macs: int, dtype: torch.dtype, known: Peaks) -> dict[str, Any]:
    quantiles = spread(times)
    middle = quantiles["p50 ms"]
    bandwidth, arithmetic = size / middle / 1e6, 2 * macs / middle / 1e6
    # what does no products is bound by its bytes alone
    limit = known.roofline(dtype, 2 * macs / size) if macs else 0.0
    return {
        **quantiles,
        "rounds": len(times),
        "GB/s": bandwidth,
        "of copy": bandwidth / known.copy,
        "GFLOP/s": arithmetic,
        "of FMA": arithmetic / known.fma[dtype],
        "of roofline": arithmetic / limit if macs else bandwidth / known.copy,
    }


def run(
    folder: Path,
    chosen: Sequence[Case],
    *,
    providers: Sequence[str] | None = None,
    without: Sequence[str] = (),
    seconds: float | None = None,
    device: str = "cpu",
    rounds: int = 20,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Measure all cases, append each to ``folder/kernels.csv`` as it is done.

    Args:
        providers: those to measure; by default all that the device has, but for those in `without`.
        seconds: after which no further case is begun.

    Returns:
        How many rows ran.
    """
    if providers is None:
        other = ("liteseg cpu",) if device.startswith("cuda") else ("liteseg cuda", "liteseg triton")
        providers = [name for name in PROVIDERS if name not in (*other, *without)]
    path, ran, started = folder / "kernels.csv", 0, time.monotonic()
    known = peaks(device, sorted({case.dtype for case in chosen}, key=str))
    products = ", ".join(f"{value:.0f} GFLOP/s in {DTYPE_NAMES[dtype]}" for dtype, value in known.fma.items())
    say(f"copy {known.copy:.1f} GB/s, product {products}, {torch.get_num_threads()} threads")
    for index, case in enumerate(chosen, start=1):
        if seconds is not None and time.monotonic() - started > seconds:
            say(f"{seconds:.0f} s are over: {len(chosen) - index + 1} of {len(chosen)} cases are not measured")
            break
        rows = measure(case, providers, known, device=device, rounds=rounds)
        append(path, COLUMNS, rows)
        say(f"{index}/{len(chosen)} ({time.monotonic() - started:.0f} s) {case.name}")
        for row in rows:
            shown = row.get("detail") or f"{row['p50 ms']:9.3f} ms  {100 * row['of roofline']:5.1f} % of the roofline"
            say(f"  {row['provider']:<20} {shown}")
        ran += sum(row["status"] == "ok" for row in rows)
    return ran


def groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Rows of the same case on the same machine."""
    return list(grouped(latest(lines, KEY), [name for name in KEY if name != "provider"]).values())


def pairs(lines: Sequence[Line]) -> list[tuple[Line, Line, float]]:
    """Of each case ours, the fastest other and their ratio, losses first."""
    return record.pairs(groups(lines), lambda line: line["provider"].startswith("liteseg"))


def summary(lines: Sequence[Line]) -> str:
    """One row a case that ours and PyTorch both ran."""
    header = (
        "op",
        "ratio",
        "layer",
        "mode",
        "dtype",
        "ours, ms",
        "best PyTorch, ms",
        "which",
        "of roofline",
        "MB",
        "MB PyTorch",
    )
    cells = []
    for mine, other, ratio in pairs(lines):
        what = [mine["op"], f"{ratio:.2f}", *(mine[name] for name in ("layer", "mode", "dtype"))]
        roofline = f"{100 * float(mine['of roofline']):.0f} %"
        times = (number(mine, "p50 ms"), number(other, "p50 ms"), other["provider"])
        memory = (number(mine, "peak MB", ".3g"), number(other, "peak MB", ".3g"))
        cells.append([*what, *times, roofline, *memory])
    return table(header, cells)


def report(lines: Sequence[Line]) -> str:
    """The page of ``kernels.csv``."""
    text = ["# Ops", ""]
    text += [
        "Medians of calls that took turns, ours beside PyTorch eager in both layouts and compiled. Bytes: every "
        "argument read once, every result written once; MACs: of the convolutions. *of roofline*: of the lower of what "
        "a copy and a large product reached on this machine, at the op's ratio of MACs to bytes; above 100 % where "
        "caches hold what a copy has to fetch. *MB*: memory on top of what was there before the call. A ratio below 1 "
        "is a loss.",
        "",
        *("## Ours against the fastest of PyTorch", "", summary(lines), ""),
    ]
    missing = [
        line for line in latest(lines, KEY) if line["status"] != "ok" and not line["provider"].endswith(COMPILED)
    ]
    if missing:
        names = ("op", "layer", "mode", "dtype", "provider", "status", "detail")
        text += ["## What did not run", "", table(names, ([x[name] for name in names] for x in missing)), ""]
    machines = {(x["device"], x["threads"], x["torch"], x["commit"], x["date"][:10]) for x in lines}
    for device, threads, version, commit, date in sorted(machines):
        text += [f"{device}, {threads} threads, torch {version}, commit {commit or 'unknown'}, {date}", ""]
    return "\n".join(text)
