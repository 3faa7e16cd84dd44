"""The measurements of a GPU day: the device's ceilings, the ops, the networks, training."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

import liteseg
import liteseg_kernels as lk
from liteseg.bench import shapes
from liteseg.bench.networks import calibrated
from liteseg.bench.record import Skip, now, read
from liteseg.bench.registry import COMPILED, EAGER, EAGER_LAST, cost, error, ready
from liteseg.bench.timing import Times, captured, peak_mb, quantiles, synchronize, wall
from liteseg_kernels._dispatch import SMALL_GRIDS

from .checks import TRAINED, backends
from .day import Day
from .rows import KERNEL, Row, Values, append, environment, slug

OURS_NETWORK = ("liteseg auto", "liteseg triton", "liteseg cuda")
# the CUDA graph without one of the things that small grids do on sm_90: the day decides whether they stay on
WITHOUT = tuple(f"liteseg cuda graph, no {name}" for name in SMALL_GRIDS)


def exact_float32(allowed: bool = False) -> None:
    """Whether PyTorch's and our float32 products may be rounded to tf32. By default not, on either side."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def clean(day: Day) -> None:
    gc.collect()
    torch._dynamo.reset()
    if day.device == "cuda":
        torch.cuda.empty_cache()


def columns(times: Times) -> Values:
    return {"p50": times.p50, "p20": times.p20, "p80": times.p80, "unit": "ms"}


# --- ceilings


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


# --- ops


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
                            if _tried(day, provider, batch_place, dtype_place):
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


# --- networks


def _tried(day: Day, provider: str, *off: int) -> bool:
    """Whether a dry run takes a row: `off` are its positions on the axes of the grid, and one axis may be left. What
    compiling costs is paid once."""
    return not day.dry or sum(position > 0 for position in off) <= (0 if provider.startswith(COMPILED) else 1)


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
                            if not _tried(day, provider, network_rank, batch_rank, dtype_place, mode_rank):
                                continue
                            yield _network_row(day, network, size, batch, dtype, mode, provider, rank)
    for provider in ("liteseg auto", EAGER_LAST, *(() if day.dry else (COMPILED,))):
        for network in day.networks[:1]:
            for size in {day.sizes[0]: 0, day.sizes[-1]: 0}:
                key = network_key(network, provider, "profile", size, 1, day.dtype_name(day.dtypes[0]))
                run: Callable[[], Values] = lambda args=(network, size, provider): _profile(day, *args)  # noqa: E731
                slow = provider == COMPILED and not day.dry
                yield Row(key, run, 0.9, cost=60 if slow else 6, limit=300, ours=provider.startswith("liteseg"))


@contextlib.contextmanager
def switched_off(provider: str) -> Iterator[None]:
    """Inside, the environment turns off what a provider of `WITHOUT` does without."""
    variable = SMALL_GRIDS.get(provider.partition(", no ")[2])
    before = None if variable is None else os.environ.get(variable)
    if variable is not None:
        os.environ[variable] = "0"
    try:
        yield
    finally:
        if variable is not None:
            os.environ.pop(variable)
            os.environ.update({} if before is None else {variable: before})


def is_graph(provider: str) -> bool:
    return "graph" in provider


def network_key(
    network: str, provider: str, mode: str, size: tuple[int, int], batch: int, dtype: str
) -> dict[str, str]:
    return {
        "op": network,
        "provider": provider,
        "mode": mode,
        "shape": f"{size[0]}x{size[1]} b{batch}",
        "layout": "nchw" if provider == EAGER else "channels_last",
        "dtype": dtype,
    }


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


def network_model(network: str, provider: str, dtype: torch.dtype, day: Day) -> nn.Module:
    model = copy.deepcopy(calibrated(network)).to(day.device, dtype)
    if provider.startswith("liteseg"):
        return lk.fuse(model.to(memory_format=torch.channels_last))
    plain = lk.to_reference(model)
    return plain if provider == EAGER else plain.to(memory_format=torch.channels_last)


def _reference_labels(model: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    return tf.interpolate(model.low_resolution_logits(x), size, mode="bilinear", align_corners=True).argmax(1).byte()


def runner(
    day: Day, network: str, size: tuple[int, int], dtype: torch.dtype, mode: str, provider: str
) -> Callable[[Tensor], Tensor]:
    """The network as a function: uint8 [N, H, W, 3] -> labels, or float [N, 3, H, W] -> full-size logits."""
    model = network_model(network, provider, dtype, day)
    last = provider != EAGER

    def ours(image: Tensor) -> Tensor:
        with lk.use_backend(provider.split()[1]):
            if mode == "logits":
                return model(image)
            return lk.runtime.labels(model, lk.functional.preprocess(image, dtype=dtype), size)

    mean, std = (torch.tensor(v, device=day.device).view(1, 3, 1, 1) for v in (liteseg.data.MEAN, liteseg.data.STD))

    def plain(image: Tensor) -> Tensor:
        if mode == "logits":
            return model(image)
        x = ((image.permute(0, 3, 1, 2).float() / 255 - mean) / std).to(dtype)
        memory_format = torch.channels_last if last else torch.contiguous_format
        return _reference_labels(model, x.contiguous(memory_format=memory_format), size)

    if provider.startswith("liteseg"):
        return ours
    if not provider.startswith(COMPILED):
        return plain
    if day.dry:
        return torch.compile(plain, backend="aot_eager", dynamic=False)
    return torch.compile(plain, mode=compile_mode(day, provider), dynamic=False)


def compile_mode(day: Day, provider: str) -> str:
    """With Inductor's own CUDA graphs, or with ours around its kernels, whichever is faster. Tuning a depthwise
    convolution takes 4 to 8 s on an H200, the network more than the two minutes that a short plan has for it."""
    if day.plan == "short":
        return "reduce-overhead" if provider == COMPILED else "default"
    return "max-autotune" if provider == COMPILED else "max-autotune-no-cudagraphs"


def inputs(size: tuple[int, int], batch: int, dtype: torch.dtype, mode: str, count: int) -> list[Tensor]:
    """`count` batches on the host; the first image is the same for every batch size."""
    generator = torch.Generator().manual_seed(0)

    def image() -> Tensor:
        if mode == "labels":
            return torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=generator)
        return torch.randn(1, 3, *size, generator=generator).to(dtype)

    return [torch.cat([image() for _ in range(batch)]) for _ in range(count)]


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


# relative error of logits; share of labels that differ, most of them between two almost equal scores
LIMITS = {
    "logits": {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1},
    "labels": {torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 3e-1},
}


@functools.cache
def expected(day: Day, network: str, size: tuple[int, int], dtype: torch.dtype, mode: str) -> Tensor:
    """Result of the plain network in float32 for the first input."""
    image = inputs(size, 1, dtype, mode, 1)[0].to(day.device)
    exact = runner(day, network, size, torch.float32, mode, EAGER)
    return exact(image if mode == "labels" else image.float())


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


# --- training


def training(day: Day) -> Iterator[Row]:
    """A training step: forward, loss, backward and SGD, under autocast; ours against eager and compiled PyTorch."""
    for network_rank, network in enumerate(day.networks[:1] if day.dry else day.networks):
        for setting_rank, (size, batch) in enumerate(day.trained):
            for precision_rank, dtype in enumerate(day.precisions):
                for provider in ("liteseg auto", EAGER, EAGER_LAST, COMPILED):
                    slow = provider == COMPILED and not day.dry
                    name = f"amp {day.dtype_name(dtype)}" if dtype != torch.float32 else "fp32"
                    rank = network_rank + setting_rank + 2 * precision_rank + 0.5 * slow
                    key = network_key(network, provider, "training step", size, batch, name)
                    args = network, size, batch, dtype, provider
                    run: Callable[[], Values] = lambda args=args: _training(day, *args)  # noqa: E731
                    ours = provider.startswith("liteseg")
                    yield Row(key, run, rank, cost=100 if slow else 8, limit=400 if slow else 120, ours=ours)


# relative error of a loss
LOSS_LIMITS = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def _labelled(day: Day, size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels, the same every time; some rows are void."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 3, *size, generator=generator)
    label = torch.randint(0, shapes.CLASSES, (batch, *size), dtype=torch.uint8, generator=generator)
    label[:, ::16] = 255
    return image.to(day.device), label.to(day.device)


def _plain_loss(low: Tensor, label: Tensor) -> Tensor:
    up = tf.interpolate(low, label.shape[1:], mode="bilinear", align_corners=True)
    return tf.cross_entropy(up, label.long(), ignore_index=255)


@functools.cache
def _expected_loss(day: Day, network: str, size: tuple[int, int], batch: int) -> float:
    """Of the first step, by the plain network in float32."""
    model: Any = lk.to_reference(copy.deepcopy(calibrated(network)).to(day.device)).train()
    image, label = _labelled(day, size, batch)
    with torch.no_grad():
        return _plain_loss(model.low_resolution_logits(image), label).item()


def _training(day: Day, network: str, size: tuple[int, int], batch: int, dtype: torch.dtype, provider: str) -> Values:
    clean(day)
    exact_float32()
    model: Any = copy.deepcopy(calibrated(network)).to(day.device)
    if provider != EAGER:
        model = model.to(memory_format=torch.channels_last)
    ours = provider.startswith("liteseg")
    if not ours:
        model = lk.to_reference(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(day.device, enabled=dtype == torch.float16 and day.device == "cuda")
    memory_format = torch.contiguous_format if provider == EAGER else torch.channels_last
    image, label = _labelled(day, size, batch)
    image = image.contiguous(memory_format=memory_format)

    def loss_of(image: Tensor, label: Tensor) -> Tensor:
        low = model.low_resolution_logits(image)
        if ours:
            return lk.functional.upsample_cross_entropy(low, label)
        return _plain_loss(low, label)

    function = loss_of
    if provider == COMPILED:
        # the default mode: autotuning forward and backward takes longer than a training run saves
        function = torch.compile(loss_of, backend="aot_eager" if day.dry else "inductor", dynamic=False)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with nullcontext() if dtype == torch.float32 else torch.autocast(day.device, dtype):
            loss = function(image, label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    first = step().item()
    count = 1 if day.dry else 10
    times = wall(step, day.device, warmup=count, repeat=2 * count)
    peak = peak_mb(step, day.device)
    last = step().item()
    exact = _expected_loss(day, network, size, batch)
    off = abs(first - exact) / exact
    return {
        **columns(times),
        "launch": "stream",
        "images/s": 1e3 * batch / times.p50,
        "peak MB": peak,
        "error": off,
        # on one batch the loss falls, unless gradients are wrong
        "status": "ok" if last < first and off <= LOSS_LIMITS[dtype] else "wrong",
        "detail": f"loss {first:.4g} to {last:.4g}",
    }
