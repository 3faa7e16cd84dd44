"""Microbenchmarks of the ops: `pytest benchmarks` (`--benchmark-json FILE` keeps the numbers).

One row an op, shape and provider, grouped so that pytest-benchmark prints the providers of one shape side by side.
Times are never asserted; that a provider gives the right result is.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .registry import OPS, providers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS = ("liteseg cpu", "liteseg triton", "liteseg cuda", "eager", "eager channels_last", "compiled")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("op", "shape"), [(op, shape) for op, (_, shapes) in OPS.items() for shape in shapes])
def test_speed(benchmark: BenchmarkFixture, op: str, shape: str, provider: str) -> None:
    build, shapes = OPS[op]
    torch.manual_seed(0)
    work = build(shapes[shape], torch.float32, DEVICE)
    with torch.inference_mode():
        call = dict(providers(work, DEVICE)).get(provider)
        if call is None:
            pytest.skip(f"{provider} cannot run {op} here")
        expected = work.torch(*work.arguments)
        if expected.is_floating_point():
            error = (call() - expected).norm() / expected.norm()
            assert error < 1e-5, f"{provider}: relative error {error:.3g}"
        else:
            assert (call() == expected).float().mean() > 0.9999

        def timed() -> None:
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{op}: {shape}"
        benchmark.extra_info |= {
            "provider": provider,
            "bytes": work.bytes,
            "macs": work.macs,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        benchmark.pedantic(timed, rounds=20, warmup_rounds=3)
