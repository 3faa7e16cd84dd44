"""The checks of a GPU day: parity, CUDA graphs, streams, tensors beyond 2^31 elements, compute-sanitizer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import liteseg
import liteseg_kernels as lk
from liteseg.bench import shapes
from liteseg.bench.registry import Work, error, on
from liteseg.bench.timing import captured, synchronize
from liteseg.predict import segment
from liteseg_kernels import _dispatch

from .day import Day
from .rows import ROOT, Row, Skip, Values

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


# --- parity


def parity(day: Day) -> Iterator[Row]:
    """The parity suite, one process a file and backend: a fault or a hang of one leaves the others alone."""
    files = sorted((ROOT / "tests/kernels").glob("test_*.py"))
    worlds = {"triton": "gpu-triton", "cuda": "gpu-cuda", "auto": "gpu"}
    if day.dry:
        files = [path for path in files if path.stem == "test_upsample_argmax"]
        worlds = {"triton": "interpreter", "cuda": "emulator"}
    for rank, (backend, name) in enumerate(worlds.items()):
        for path in files:
            key = {"check": "parity", "case": path.stem.removeprefix("test_"), "backend": backend}
            run = _pytest(day, path, name)
            yield Row(key, run, rank=rank, cost=15 if not day.dry else 1, limit=300)


def _pytest(day: Day, path: Path, name: str) -> Callable[[], Values]:
    def run() -> Values:
        # every id is [world-case]; a dry run takes one small case
        chosen = f"{name}-batch" if day.dry else f"{name}-"
        if name == "gpu":
            chosen += " and not gpu-triton and not gpu-cuda"
        report = day.logs / f"parity-{path.stem}-{name}.xml"
        log = report.with_suffix(".txt")
        workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") and not day.dry else []
        command = [sys.executable, "-m", "pytest", str(path), "-k", chosen, "-q", "-p", "no:cacheprovider", *workers]
        command += [] if day.dry else ["-m", "gpu"]
        # float32 means float32 where PyTorch's own convolutions stand in for a kernel
        variables = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}
        with log.open("w") as out:
            done = subprocess.run(
                [*command, f"--junitxml={report}"], cwd=ROOT, env=variables, stdout=out, stderr=out, check=False
            )
        if done.returncode == 5:
            raise Skip("no test for this backend")
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit code {done.returncode} before its report, see {log.name}")
        suite = xml.parse(report).getroot().find("testsuite")
        assert suite is not None
        tests, failures, errors, skipped = (int(suite.get(n, 0)) for n in ("tests", "failures", "errors", "skipped"))
        passed = tests - failures - errors - skipped
        detail = f"{passed} passed, {failures + errors} failed, {skipped} skipped"
        if done.returncode != 0:
            bad = [
                str(c.get("name")) for c in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in c}
            ]
            return {"status": "failed", "detail": f"{detail}: {'; '.join(bad[:6])}"}
        if passed == 0:
            reasons = {s.get("message") for s in suite.iter("skipped")}
            raise Skip(f"{detail}: {'; '.join(map(str, sorted(map(str, reasons))[:2]))}")
        return {"detail": detail}

    return run


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
        torch.manual_seed(0)
        model = lk.fuse(liteseg.create_model(network).to(day.device, day.dtypes[0]))
        height, width = day.small

        def picture(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8).to(day.device)

        def labels(image: Tensor) -> Tensor:
            x = lk.functional.preprocess(image, dtype=day.dtypes[0])
            return segment(model, x, (height, width))

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
    """All ops, small, under compute-sanitizer; first without it, which compiles the kernels."""
    for backend in backends(day):
        key = {"check": "sanitizer", "backend": backend, "dtype": "fp16"}
        bare: Callable[[], Values] = lambda backend=backend: _target(day, [], backend)  # noqa: E731
        yield Row({**key, "case": "without"}, bare, cost=20, limit=180)
        for rank, tool in enumerate(("memcheck", "racecheck"), start=1):
            run: Callable[[], Values] = lambda backend=backend, tool=tool: _sanitize(day, tool, backend)  # noqa: E731
            yield Row({**key, "case": tool}, run, rank=rank, cost=40, limit=240)


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
    command = [*wrapper, sys.executable, "-m", "benchmarks.checks", backend, *(["--dry-run"] if day.dry else [])]
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
    """What runs under the sanitizer: `python -m benchmarks.checks BACKEND [--dry-run]`."""
    day = Day.make(dry="--dry-run" in sys.argv)
    backend = sys.argv[1]
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
