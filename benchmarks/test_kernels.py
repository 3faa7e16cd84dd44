"""Microbenchmarks of the ops: `pytest benchmarks` (`--benchmark-json FILE` keeps the numbers).

One layer of the networks for each op, one row a provider, grouped so that pytest-benchmark prints the providers of one
layer side by side. Times are never asserted; that a provider gives the right result is. All shapes, dtypes and batch
sizes are measured by `make gpu-day`.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import liteseg_kernels as lk
from liteseg.bench.registry import PROVIDERS, cost, error, provide
from liteseg.bench.shapes import Layer, one_of_each

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {layer.call.op: layer for layer in one_of_each(size=(360, 640), geometry=False)}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_speed(benchmark: BenchmarkFixture, layer: Layer, provider: str) -> None:
    work, call = provide(provider, layer.call, torch.float32, DEVICE)
    with torch.inference_mode():
        try:
            off = error(call(), work.exact())
        except lk.BackendError as reason:
            pytest.skip(str(reason))
        assert off < (1e-5 if work.exact().is_floating_point() else 1e-4), f"{provider}: off by {off:.3g}"

        def timed() -> None:
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        counted = cost(layer.call, torch.float32)
        benchmark.group = f"{layer.call.op}: {layer.name}"
        benchmark.extra_info |= {
            "provider": provider,
            "bytes": counted.bytes,
            "macs": counted.macs,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        benchmark.pedantic(timed, rounds=20, warmup_rounds=3)
