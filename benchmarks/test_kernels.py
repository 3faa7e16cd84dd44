"""Microbenchmarks of the ops: `pytest benchmarks` (`--benchmark-json FILE` keeps the numbers).

One layer of the networks for each op, forward, and forward with backward; one row a provider, grouped so that
pytest-benchmark prints the providers of one layer side by side. Times are never asserted; that a provider gives the
right result is. `liteseg benchmark kernels` measures all layers, with the providers taking turns.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import liteseg_kernels as lk
from liteseg.bench.kernels import Case, Peaks, cases, peaks
from liteseg.bench.registry import PROVIDERS, TOLERANCE, cost, error, provide
from liteseg.bench.timing import peak_mb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float32,)
CASES = list(cases(sizes=[(360, 640)], dtypes=DTYPES, one_of_each=True))


@pytest.fixture(scope="session")
def known() -> Peaks:
    return peaks(DEVICE, DTYPES)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_speed(benchmark: BenchmarkFixture, case: Case, provider: str, known: Peaks) -> None:
    full = case.mode == "full"
    with nullcontext() if full else torch.inference_mode():
        work, call = provide(provider, case.call, case.dtype, DEVICE, full=full)
        try:
            off = error(call(), work.exact())
        except lk.BackendError as reason:
            pytest.skip(str(reason))
        assert off < TOLERANCE[case.dtype], f"{provider}: off by {off:.3g}"

        def timed() -> None:
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        counted = cost(case.call, case.dtype, full=full)
        memory = peak_mb(call, DEVICE)
        benchmark.group = case.name
        benchmark.pedantic(timed, rounds=20, warmup_rounds=3)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "provider": provider,
            "bytes": counted.bytes,
            "macs": counted.macs,
            "share of copy": counted.bytes / seconds / 1e9 / known.copy,
            "share of FMA": 2 * counted.macs / seconds / 1e9 / known.fma[case.dtype],
            "peak MB": memory,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
