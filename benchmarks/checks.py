"""The checks of a GPU day: switches, CUDA graphs, streams, tensors beyond 2^31 elements, compute-sanitizer."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import liteseg_kernels as lk
from liteseg.bench import shapes
from liteseg.bench.networks import calibrated
from liteseg.bench.record import Skip
from liteseg.bench.registry import Work, error, on
from liteseg.bench.timing import captured, synchronize
from liteseg_kernels import _dispatch

from .day import Day
from .rows import ROOT, Row, Values

# what training runs by ops of this library
TRAINED = ("upsample_concat", "upsample_cross_entropy")


# what Triton's interpreter runs in seconds at the sizes of a dry run
INTERPRETED = ("preprocess", "upsample_concat", "upsample_concat_separable_conv2d", "upsample_argmax")


def backends(day: Day, op: str | None = None) -> tuple[str, ...]:
    """Triton and CUDA, those that have a kernel for `op`. In a dry run the CUDA kernels come from the emulator, where a
    compiler can build it, and Triton runs what its interpreter is fast enough for."""
    names = [name for name in ("triton", "cuda") if op is None or name in _dispatch._registry[op]]
    if day.dry:
        from tests.emulator.build import load

        if op is not None and op not in INTERPRETED and "triton" in names:
            names.remove("triton")
        if load() is not None and "cuda" in names:
            names.remove("cuda")
    return tuple(names)


def _layers(day: Day) -> Iterator[tuple[shapes.Layer, bool]]:
    """(layer, with its backward pass) of every op in every geometry, small."""
    for layer in shapes.one_of_each(day.networks, day.small, geometry=not day.dry):
        yield layer, False
        if layer.call.op in TRAINED:
            yield layer, True


def _mode(op: str, full: bool) -> str:
    return f"{op} fwd+bwd" if full else op


def _supported(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except lk.BackendError as reason:
        raise Skip(str(reason)) from None


def _same(actual: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(actual, expected):
        raise AssertionError(f"{what}: results differ, by {error(actual, expected):.3g} (relative)")


# --- what small grids do on sm_90, and what only a GPU can show


# on or off, in the order of _dispatch.SMALL_GRIDS; everything on first
_SWITCHES = (("1", "1"), ("0", "1"), ("1", "0"), ("0", "0"))


def switches(day: Day) -> Iterator[Row]:
    """Early launches and clusters on and off; a kernel that starts early behind a copy; two threads with two sizes."""
    for network in day.networks[:1] if "cuda" in backends(day) else ():
        for dtype in day.dtypes[: 1 if day.dry else 2]:
            for size in day.sizes[:1]:
                case = f"{network} {size[0]}x{size[1]}"
                key = {"case": case, "backend": "cuda", "dtype": day.dtype_name(dtype)}
                run: Callable[[], Values] = lambda args=(network, size, dtype): _switched(day, *args)  # noqa: E731
                yield Row({"check": "early launch x clusters", **key}, run, cost=5)
    for layer, _ in _layers(day):
        if layer.call.op in ("upsample_argmax", "inverted_residual"):
            key = {"case": f"{layer.call.op}, {layer.name}", "backend": "cuda", "dtype": "fp16"}
            if "cuda" in backends(day, layer.call.op):
                yield Row({"check": "graph behind a copy", **key}, _behind_a_copy(day, layer), rank=1)
    # the interpreter takes minutes for a network
    for backend in backends(day) if not day.dry else set(backends(day)) - {"triton"}:
        key = {"check": "two threads, two sizes", "case": day.networks[0], "backend": backend, "dtype": "fp16"}
        yield Row(key, lambda backend=backend: _two_threads(day, backend), rank=2, cost=5)


@contextlib.contextmanager
def _small_grids(values: tuple[str, str]) -> Iterator[None]:
    names = list(_dispatch.SMALL_GRIDS.values())
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(zip(names, values, strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _switched(day: Day, network: str, size: tuple[int, int], dtype: torch.dtype) -> Values:
    """An early start may change no bit. Clusters add up in another order, so they may change the last ones; with and
    without them each run has to give the same bits as the run before it, also from a CUDA graph."""
    from . import runners

    runner = runners.runner(day, network, size, dtype, "logits", "liteseg cuda")
    picture = runners.inputs(size, 1, dtype, "logits", 1)[0].to(day.device)
    picture = picture.contiguous(memory_format=torch.channels_last)
    found: dict[tuple[str, str], Tensor] = {}
    repeats = 1 if day.dry else 20
    with torch.inference_mode():
        for values in _SWITCHES:
            with _small_grids(values):
                what = ", ".join(f"{name} {'off' if v == '0' else 'on'}" for name, v in _named(values))
                found[values] = runner(picture).clone()
                for _ in range(repeats):
                    _same(runner(picture), found[values], f"once more, {what}")
                replay, result = captured(lambda: runner(picture), day.device)
                for _ in range(repeats):
                    replay()
                    synchronize(day.device)
                    _same(result, found[values], f"from a graph, {what}")
    for clusters in ("1", "0"):
        _same(found["0", clusters], found["1", clusters], f"early launches off and on, clusters {clusters}")
    off = error(found["1", "0"], found["1", "1"])
    if off > (1e-4 if dtype == torch.float32 else 1e-2):
        raise AssertionError(f"clusters off and on differ by {off:.3g} (relative)")
    return {"detail": f"early launches: same bits; clusters: {off:.2g} (relative) between off and on"}


def _named(values: tuple[str, str]) -> Iterator[tuple[str, str]]:
    return zip(_dispatch.SMALL_GRIDS, values, strict=True)


def _behind_a_copy(day: Day, layer: shapes.Layer) -> Callable[[], Values]:
    def run() -> Values:
        work = Work(layer.call, torch.float16, day.device, channels_last=True)
        first = work.maps()[0]
        source = first.clone()
        call = on("cuda", work)
        expected = _supported(call).clone()

        def copied() -> Tensor:
            # equal strides: one copy from memory to memory, no kernel
            first.copy_(source)
            return call()

        replay, result = captured(copied, day.device)
        for _ in range(2 if day.dry else 50):
            first.zero_()
            replay()
            synchronize(day.device)
            _same(result, expected, "behind a copy")
        return {}

    return run


def _two_threads(day: Day, backend: str) -> Values:
    """Two threads run the network at two sizes, so that equal kernels want unequal shared memory at the same time."""
    from . import runners

    height, width = day.small
    sizes = ((height, width), (2 * height, 3 * width // 2))
    runners = [
        runners.runner(day, day.networks[0], size, torch.float16, "logits", f"liteseg {backend}") for size in sizes
    ]
    pictures = [runners.inputs(size, 1, torch.float16, "logits", 1)[0].to(day.device) for size in sizes]
    with torch.inference_mode():
        expected = [run(picture).clone() for run, picture in zip(runners, pictures, strict=True)]
    synchronize(day.device)

    def work(index: int) -> None:
        stream: Any = contextlib.nullcontext()
        if day.device == "cuda":
            stream = torch.cuda.stream(torch.cuda.Stream())
        with torch.inference_mode(), stream:
            for _ in range(2 if day.dry else 50):
                result = runners[index](pictures[index])
                if day.device == "cuda":
                    torch.cuda.current_stream().synchronize()
                _same(result, expected[index], f"thread {index}")

    # the emulator runs one kernel at a time
    with ThreadPoolExecutor(1 if day.dry else 2) as pool:
        list(pool.map(work, range(2)))
    return {}


# --- CUDA graphs and streams


def graphs(day: Day) -> Iterator[Row]:
    """Every op and every network replayed from a CUDA graph on new inputs, and run on two streams at once."""
    for layer, full in _layers(day):
        for backend in backends(day, layer.call.op):
            for dtype in day.dtypes:
                what = f"{_mode(layer.call.op, full)}, {layer.name}"
                key = {"case": what, "backend": backend, "dtype": day.dtype_name(dtype)}
                yield Row({"check": "graph", **key}, _replay(day, layer, backend, dtype, full), cost=3)
                if dtype == day.dtypes[0]:
                    yield Row(
                        {"check": "two streams", **key}, _streams(day, layer, backend, dtype, full), rank=1, cost=3
                    )
    for network in day.networks:
        key = {"check": "graph", "case": f"network {network}", "backend": "auto"}
        yield Row({**key, "dtype": day.dtype_name(day.dtypes[0])}, _replay_network(day, network), rank=0.5, cost=20)


def _replay(day: Day, layer: shapes.Layer, backend: str, dtype: torch.dtype, full: bool) -> Callable[[], Values]:
    def run() -> Values:
        work = Work(layer.call.batch(2), dtype, day.device, channels_last=True, full=full)
        call = on(backend, work)
        _supported(call)
        replay, result = captured(call, day.device)
        for seed in (1, 2):
            other = Work(layer.call.batch(2), dtype, day.device, channels_last=True, full=full, seed=seed)
            other.upstream = work.upstream
            with torch.no_grad():
                for static, fresh in zip(work.tensors(), other.tensors(), strict=True):
                    static.copy_(fresh)
            replay()
            synchronize(day.device)
            _same(result, on(backend, other)(), f"replay {seed}")
        return {}

    return run


def _streams(day: Day, layer: shapes.Layer, backend: str, dtype: torch.dtype, full: bool) -> Callable[[], Values]:
    def run() -> Values:
        works = [
            Work(layer.call.batch(2), dtype, day.device, channels_last=True, full=full, seed=seed) for seed in range(2)
        ]
        calls = [on(backend, work) for work in works]
        expected = [_supported(call) for call in calls]
        synchronize(day.device)
        streams: list[Any] = [contextlib.nullcontext()] * 2
        if day.device == "cuda":
            streams = [torch.cuda.stream(torch.cuda.Stream()) for _ in range(2)]
        results: list[list[Tensor]] = [[], []]
        for _ in range(2 if day.dry else 20):
            for call, stream, found in zip(calls, streams, results, strict=True):
                with stream:
                    found.append(call())
        synchronize(day.device)
        for found, wanted in zip(results, expected, strict=True):
            for one in found:
                _same(one, wanted, "beside another stream")
        return {}

    return run


def _replay_network(day: Day, network: str) -> Callable[[], Values]:
    def run() -> Values:
        model = lk.fuse(copy.deepcopy(calibrated(network)).to(day.device, day.dtypes[0]))
        height, width = day.small

        def picture(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8).to(day.device)

        def labels(image: Tensor) -> Tensor:
            x = lk.functional.preprocess(image, dtype=day.dtypes[0])
            return lk.runtime.labels(model, x, (height, width))

        static = picture(0)
        with torch.inference_mode():
            replay, result = captured(lambda: labels(static), day.device)
            for seed in (1, 2):
                static.copy_(picture(seed))
                replay()
                synchronize(day.device)
                _same(result, labels(picture(seed)), f"replay {seed}")
        return {}

    return run


# --- tensors beyond 2^31 elements


def large(day: Day) -> Iterator[Row]:
    """Each op with more than 2^31 elements in its largest map: the first, middle and last image as when run alone."""
    limit = 2**12 if day.dry else 2**31
    widest: dict[str, tuple[int, shapes.Layer]] = {}
    for network in day.networks:
        for layer in (*shapes.inference(network, day.sizes[-1]), *shapes.training(network, day.sizes[-1])):
            elements = max(
                torch.Size(value.shape).numel() for name, value in layer.call.arguments if shapes.is_map(name, value)
            )
            if elements > widest.get(layer.call.op, (0, layer))[0]:
                widest[layer.call.op] = elements, layer
    for op, (elements, layer) in widest.items():
        for full in (False, True) if op in TRAINED else (False,):
            for backend in backends(day, op):
                for channels_last in (True, False):
                    layout = "channels_last" if channels_last else "nchw"
                    case = f"{_mode(op, full)}, {layer.name} b{limit // elements + 2}, {layout}"
                    call = layer.call.batch(limit // elements + 2)
                    key = {"check": "large", "case": case, "backend": backend, "dtype": "fp16"}
                    yield Row(key, _large(day, call, backend, channels_last, full), rank=not channels_last, cost=5)


def _large(day: Day, call: shapes.Call, backend: str, channels_last: bool, full: bool) -> Callable[[], Values]:
    def results(work: Work) -> list[Tensor]:
        with lk.use_backend(backend, strict=True):
            out = work.op()
            out = out[0] if isinstance(out, tuple) else out
            if not full:
                return [out]
            maps = [t for t in work.maps() if t.requires_grad]
            return list(torch.autograd.grad(out, maps, torch.ones_like(out)))

    def run() -> Values:
        if day.device == "cuda":
            torch.cuda.empty_cache()
        # what the backend does not take, it need not refuse with gigabytes in its hands
        _supported(
            lambda: results(Work(call.batch(1), torch.float16, day.device, channels_last=channels_last, full=full))
        )
        work = Work(call, torch.float16, day.device, channels_last=channels_last, full=full)
        together = results(work)
        images = work.maps()[0].shape[0]
        for index in (0, images // 2, images - 1):

            def alone(name: str, value: Any, index: int = index) -> Any:
                if not shapes.is_map(name, value):
                    return value
                # a copy of its own keeps the whole map out of the gradient's way
                return value.detach()[index : index + 1].clone().requires_grad_(value.requires_grad)

            for got, wanted in zip(together, results(work.with_arguments(alone)), strict=True):
                off = error(got[index : index + 1], wanted)
                if off > 2e-3:
                    raise AssertionError(f"image {index} of {images}: off by {off:.3g} from the same image alone")
        return {"detail": f"{sum(t.numel() for t in work.maps()):,} elements"}

    return run


# --- compute-sanitizer


def sanitizer(day: Day) -> Iterator[Row]:
    """All ops, small, under compute-sanitizer: CUDA, which nothing has to compile, then Triton, first without it."""
    for place, backend in enumerate(sorted(backends(day), key=("cuda", "triton").index)):
        key = {"check": "sanitizer", "backend": backend, "dtype": "fp16"}
        bare: Callable[[], Values] = lambda backend=backend: _target(day, [], backend)  # noqa: E731
        if backend == "triton" or day.dry:
            yield Row({**key, "case": "without"}, bare, rank=3 * place, cost=20, limit=180)
        for rank, tool in enumerate(("memcheck", "racecheck"), start=3 * place + 1):
            run: Callable[[], Values] = lambda backend=backend, tool=tool: _sanitize(day, tool, backend)  # noqa: E731
            limit = 75 if day.plan == "short" else 240
            yield Row({**key, "case": tool}, run, rank=rank, cost=30, limit=limit)


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    places = [f"{home}/bin/compute-sanitizer", f"{home}/compute-sanitizer/compute-sanitizer"]
    return shutil.which("compute-sanitizer") or next((p for p in places if os.access(p, os.X_OK)), None)


def _sanitize(day: Day, tool: str, backend: str) -> Values:
    program = find_sanitizer()
    if program is None:
        raise Skip("compute-sanitizer is not installed")
    options = ["--tool", tool, "--error-exitcode", "99", "--target-processes", "application-only"]
    # what PyTorch asks of the driver and is refused is not our kernels' fault
    options += ["--report-api-errors", "no"] if tool == "memcheck" else []
    return _target(day, [program, *options], backend)


def _target(day: Day, wrapper: list[str], backend: str) -> Values:
    command = [
        *wrapper,
        sys.executable,
        "-m",
        "benchmarks.checks",
        backend,
        day.plan,
        *(["--dry-run"] if day.dry else []),
    ]
    # without the caching allocator every tensor has bounds that memcheck sees
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    tool = wrapper[wrapper.index("--tool") + 1] if wrapper else "without"
    (day.logs / f"sanitizer-{tool}-{backend}.txt").write_text(text)
    if re.search(r"[Dd]evice not supported|not supported on this", text):
        raise Skip(next(line for line in text.splitlines() if "not supported" in line))
    summary = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
    if done.returncode != 0:
        reported = [line.strip("= ") for line in text.splitlines() if "=========" in line and "SUMMARY" not in line]
        shown = summary + reported[:6] or text.strip().splitlines()[-1:]
        return {"status": "failed", "detail": f"exit code {done.returncode}: {'; '.join(shown)}"}
    calls = [line for line in text.splitlines() if line.endswith(" calls")]
    return {"detail": "; ".join(calls + summary)}


def main() -> None:
    """What runs under the sanitizer: `python -m benchmarks.checks BACKEND PLAN [--dry-run]`."""
    backend, plan = sys.argv[1:3]
    day = Day.make(plan, dry="--dry-run" in sys.argv)
    ran = 0
    for layer, full in _layers(dataclasses.replace(day, small=(32, 48))):
        if backend not in backends(day, layer.call.op):
            continue
        with contextlib.suppress(Skip):
            _supported(on(backend, Work(layer.call, torch.float16, day.device, channels_last=True, full=full)))
            ran += 1
    synchronize(day.device)
    if not ran:
        sys.exit(f"no op has a {backend} kernel for this device")
    print(f"{ran} calls")


if __name__ == "__main__":
    main()
