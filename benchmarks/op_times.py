"""What a GPU day measures of the device and the ops: ceilings that nothing can beat, then every op at its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

import liteseg_kernels as lk
from liteseg.bench import shapes
from liteseg.bench.record import Skip, read
from liteseg.bench.registry import COMPILED, EAGER, EAGER_LAST, cost, ready
from liteseg.bench.timing import captured, quantiles

from .checks import TRAINED, backends
from .day import Day
from .rows import Row, Values, environment, slug
from .runners import clean, columns, exact_float32


def ceilings(day: Day) -> Iterator[Row]:
    """What nothing can beat here: a copy, a large product, and the time of an empty CUDA graph."""

    def key(op: str, shape: str, dtype: str) -> dict[str, str]:
        return {"op": op, "provider": "torch", "mode": "fwd", "shape": shape, "layout": "", "dtype": dtype}

    size = 2**20 if day.dry else 2**32
    for name, length in (("4 GiB", size), ("256 MiB", size // 16)):
        yield Row(key("copy", name, "bytes"), lambda length=length: _copy(day, length), ours=False)
    edge = 64 if day.dry else 8192
    for dtype in day.dtypes:
        run: Callable[[], Values] = lambda dtype=dtype: _product(day, edge, dtype)  # noqa: E731
        yield Row(key("product", "8192 x 8192 x 8192", day.dtype_name(dtype)), run, rank=1, ours=False)
    yield Row(key("empty graph", "one element", "fp32"), lambda: _floor(day), rank=2, ours=False)


def _copy(day: Day, length: int) -> Values:
    source = torch.randint(0, 255, (length,), dtype=torch.uint8, device=day.device)
    target = torch.empty_like(source)
    times = quantiles(lambda: target.copy_(source), day.device, 200)
    return {**columns(times), "launch": "stream", "GB/s": 2 * length / times.p50 / 1e6}


def _product(day: Day, edge: int, dtype: torch.dtype) -> Values:
    exact_float32()
    a, b = (torch.randn(edge, edge, device=day.device, dtype=dtype) for _ in range(2))
    times = quantiles(lambda: a @ b, day.device, 200)
    return {**columns(times), "launch": "stream", "TFLOP/s": 2 * edge**3 / times.p50 / 1e9}


def _floor(day: Day) -> Values:
    one = torch.zeros(1, device=day.device)
    replay, _ = captured(lambda: one + 1, day.device)
    return {**columns(quantiles(replay, day.device)), "launch": "graph"}


def measured_copy(day: Day) -> float | None:
    """GB/s of the last measured 4 GiB copy on this device."""
    device = environment()["device"]
    lines = read(day.results / f"{slug(device)}-ceilings.csv")
    rates = [line["GB/s"] for line in lines if line["op"] == "copy" and line["shape"] == "4 GiB" and line["GB/s"]]
    return float(rates[-1]) if rates else None


def ops(day: Day) -> Iterator[Row]:
    """Every op at the layers of the networks. The rank puts fp16, batch 1, the largest and the paper's size first, and
    each tier's cheap providers before the compiled ones."""
    size_rank = {size: (0.0 if size in (day.sizes[0], day.sizes[-1]) else 2.0) for size in day.sizes}
    batch_rank = dict(zip(day.batches, (0.0, 1.5, 3.0), strict=False))
    dtype_rank = dict(zip(day.dtypes, (0.0, 2.5, 3.5), strict=False))
    for size in day.sizes:
        for network_rank, layer in _op_layers(day, size):
            op = layer.call.op
            ours = [f"liteseg {backend}" for backend in backends(day, op)]
            # one compiled row is enough to see that the way is open
            plain = (EAGER, EAGER_LAST, COMPILED) if not day.dry or op == "upsample_argmax" else (EAGER, EAGER_LAST)
            for batch_place, batch in enumerate(day.batches):
                for dtype_place, dtype in enumerate(day.dtypes):
                    rank = network_rank * 0.25 + size_rank[size] + batch_rank[batch] + dtype_rank[dtype]
                    for provider in (*ours, *plain):
                        for full in (False, True) if op in TRAINED else (False,):
                            if day.takes(provider.startswith(COMPILED), batch_place, dtype_place):
                                yield _op_row(day, layer, batch, dtype, provider, full, rank)


def _op_layers(day: Day, size: tuple[int, int]) -> Iterator[tuple[int, shapes.Layer]]:
    """(place of its network, layer) of all layers at a size, equal calls of several networks once."""
    if day.dry:
        yield from ((0, layer) for layer in shapes.one_of_each(day.networks, size, geometry=False))
        return
    seen = set()
    for place, network in enumerate(day.networks):
        for layer in (*shapes.inference(network, size), *shapes.training(network, size)):
            if layer.call not in seen:
                seen.add(layer.call)
                yield place, layer


def _op_row(
    day: Day, layer: shapes.Layer, batch: int, dtype: torch.dtype, provider: str, full: bool, rank: float
) -> Row:
    key = {
        "op": layer.call.op,
        "provider": provider,
        "mode": "fwd+bwd" if full else "fwd",
        "shape": f"{layer.name} b{batch}",
        "layout": "nchw" if provider == EAGER else "channels_last",
        "dtype": day.dtype_name(dtype),
    }
    slow = provider == COMPILED
    # a compiled row takes seconds to autotune: after the other networks' rows of its tier, before the next tier
    rank += 0.6 if slow else 0.0
    run: Callable[[], Values] = lambda: _op(day, layer.call.batch(batch), dtype, provider, full)  # noqa: E731
    return Row(key, run, rank, cost=25 if slow and not day.dry else 1, limit=240 if slow else 90, ours=not slow)


def _op(day: Day, call: shapes.Call, dtype: torch.dtype, provider: str, full: bool) -> Values:
    clean(day)
    exact_float32()
    with nullcontext() if full else torch.inference_mode():
        try:
            timed, facts = ready(provider, call, dtype, day.device, full=full)
        except lk.BackendError as reason:
            raise Skip(str(reason)) from None
        times = quantiles(timed, day.device)
    counted = cost(call, dtype, full=full)
    rate = counted.bytes / times.p50 / 1e6
    copy = measured_copy(day)
    return {
        **columns(times),
        **facts,
        "GB/s": rate,
        "share of copy": None if copy is None else rate / copy,
        "TFLOP/s": 2 * counted.macs / times.p50 / 1e9,
    }
