"""Every launch of a network from picture to labels, measured beside what was predicted for it.

Each op runs by itself, the device idle before and after it; what the device did in between was launched by it. Times
are the profiler's, of the kernels alone: without what early launches hide, and without a graph's gaps.
"""

from __future__ import annotations

import csv
import inspect
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import liteseg_kernels as lk
from liteseg.bench.record import now
from liteseg.bench.timing import synchronize

from . import runners
from .checks import backends
from .day import Day
from .rows import LAUNCH, Row, Values, append, environment, slug

PREDICTIONS = Path(__file__).with_name("predictions.csv")
# columns of PREDICTIONS: a layer's `step` counts its launches from 1; 0 is all of them
PREDICTION = ("network", "size", "dtype", "batch", "provider", "layer", "step", "us", "source")
_VIEWS = ("aten::view", "aten::permute", "aten::slice", "aten::as_strided", "aten::detach", "aten::alias")


def launches(day: Day) -> Iterator[Row]:
    """A row a size and backend; the table is a CSV of its own."""
    for rank, size in enumerate(day.sizes):
        for place, backend in enumerate(sorted(backends(day), key=("cuda", "triton").index)):
            # the interpreter takes minutes for a network
            if day.dry and backend == "triton":
                continue
            network = day.networks[0]
            key = {"check": "launches", "case": f"{network} {size[0]}x{size[1]}", "backend": backend, "dtype": "fp16"}
            run = lambda args=(network, size, backend): _measure(day, *args)  # noqa: E731
            yield Row(key, run, rank=rank + 2 * place, cost=8 if not day.dry else 1, limit=120)


@dataclass(frozen=True)
class Span:
    """What ran from `start` to `end` (microseconds): an op of a layer on the host, or a kernel on the device."""

    name: str
    start: float
    end: float


class _Each(TorchDispatchMode):
    """Runs every op by itself and notes its layer, its name and when it ran."""

    def __init__(self, device: str, model: nn.Module) -> None:
        super().__init__()
        self.device = device
        self.names = {id(module): name for name, module in model.named_modules()}
        self.spans: list[Span] = []

    def _place(self) -> str:
        """Name of the innermost module whose forward is running. Hooks would know it, and keep every block from its
        fused op."""
        frame = inspect.currentframe()
        while frame is not None:
            module = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
            if isinstance(module, nn.Module) and id(module) in self.names:
                return self.names[id(module)]
            frame = frame.f_back
        return ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        place = self._place()
        synchronize(self.device)
        start = time.time_ns() / 1e3
        result = func(*args, **(kwargs or {}))
        synchronize(self.device)
        if name not in _VIEWS:
            own = name.partition("::")[2]
            ours = name.startswith("liteseg::")
            layer = place or own
            self.spans.append(Span(layer if ours else f"{layer} {own}", start, time.time_ns() / 1e3))
        return result


def attribute(ops: Sequence[Span], kernels: Sequence[Span]) -> list[tuple[str, str, float]]:
    """(layer, kernel, microseconds) of every kernel, in the order they ran; the layer is "" where no op ran then."""
    found = []
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        middle = (kernel.start + kernel.end) / 2
        layer = next((op.name for op in ops if op.start <= middle <= op.end), "")
        found.append((layer, kernel.name, kernel.end - kernel.start))
    return found


def _measure(day: Day, network: str, size: tuple[int, int], backend: str) -> Values:
    from torch.profiler import ProfilerActivity, profile

    runners.clean(day)
    runners.exact_float32()
    dtype = torch.float16
    provider = f"liteseg {backend}"
    model: Any = runners.network_model(network, provider, dtype, day)
    picture = runners.inputs(size, 1, dtype, "labels", 1)[0].to(day.device)
    each = _Each(day.device, model)

    def run() -> Tensor:
        x = lk.functional.preprocess(picture, dtype=dtype)
        return lk.functional.upsample_argmax(model.low_resolution_logits(x), size, align_corners=True)

    repeat = 1 if day.dry else 20
    runs: list[list[tuple[str, str, float]]] = []
    with torch.inference_mode(), lk.use_backend(backend):
        for _ in range(1 if day.dry else 3):
            run()
        for _ in range(repeat):
            each.spans.clear()
            if day.device == "cuda":
                with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler, each:
                    run()
                runs.append(attribute(each.spans, _kernels(profiler)))
            else:
                with each:
                    run()
                # a stand-in: every op is its own kernel
                runs.append(attribute(each.spans, each.spans))
    return _record(day, network, size, provider, runs)


def _kernels(profiler: Any) -> list[Span]:
    """What the device did, on the host's clock in microseconds."""
    return [
        Span(event.name(), event.start_ns() / 1e3, event.end_ns() / 1e3)
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
        and event.name() not in ("", "Context Sync")
        and not event.is_user_annotation()
    ]


def predictions(network: str, size: tuple[int, int], provider: str) -> dict[tuple[str, int], tuple[float, str]]:
    """(layer, step) -> (microseconds, where it comes from), for half precision and one image."""
    with PREDICTIONS.open(newline="") as file:
        lines = list(csv.DictReader(file))
    wanted = (network, f"{size[0]}x{size[1]}", "fp16", "1", provider)
    return {
        (line["layer"], int(line["step"])): (float(line["us"]), line["source"])
        for line in lines
        if tuple(line[name] for name in PREDICTION[:5]) == wanted
    }


def table(
    runs: Sequence[Sequence[tuple[str, str, float]]], predicted: dict[tuple[str, int], tuple[float, str]]
) -> list[Values]:
    """A line a launch, its median over the runs that launched the same kernels as the last; then a line a layer and one
    for the network, each with its prediction where there is one."""
    names = [name for _, name, _ in runs[-1]]
    alike = [run for run in runs if [name for _, name, _ in run] == names]
    times = [median(run[index][2] for run in alike) for index in range(len(names))]
    of_layer: dict[str, list[float]] = defaultdict(list)
    places = []
    for (layer, _, _), us in zip(runs[-1], times, strict=True):
        # "backbone.stem conv2d": what torch's own ops of a layer launch is the layer's
        whole = layer.split(" ")[0].removesuffix(".activation")
        of_layer[whole].append(us)
        places.append((whole, len(of_layer[whole])))
    lines: list[Values] = []
    for index, ((layer, kernel, _), us, place) in enumerate(zip(runs[-1], times, places, strict=True)):
        # a layer's only launch is the layer
        place = (place[0], 0) if len(of_layer[place[0]]) == 1 else place
        lines.append(_line(f"{index + 1}", layer, kernel[:160], us, predicted.get(place)))
    for layer, found in of_layer.items():
        if len(found) > 1:
            lines.append(_line("sum", layer, f"{len(found)} launches", sum(found), predicted.get((layer, 0))))
    lines.append(_line("sum", "network", f"{len(times)} launches", sum(times), predicted.get(("network", 0))))
    return lines


def _line(launch: str, layer: str, kernel: str, us: float, prediction: tuple[float, str] | None) -> Values:
    line: Values = {"launch": launch, "layer": layer, "kernel": kernel, "us": us}
    if prediction is not None:
        line |= {"predicted us": prediction[0], "measured/predicted": us / prediction[0], "source": prediction[1]}
    return line


def _record(day: Day, network: str, size: tuple[int, int], provider: str, runs: Any) -> Values:
    if not runs[-1]:
        raise RuntimeError("the profiler saw no kernel")
    path = day.results / f"{slug(environment()['device'])}-launches.csv"
    # one date for all lines tells which belong together
    place = {"network": f"{network} {size[0]}x{size[1]} b1 fp16", "provider": provider, "date": now()}
    lines = table(runs, predictions(network, size, provider))
    for line in lines:
        append(path, LAUNCH, {**place, **line})
    lost = sum(layer == "" for layer, _, _ in runs[-1])
    detail = f"{len(runs[-1])} launches, {sum(us for _, _, us in runs[-1]):.0f} us"
    return {"detail": detail + (f"; {lost} of no layer" if lost else "")}
