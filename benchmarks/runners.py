"""Networks as a GPU day runs them: functions from pictures to labels or logits by provider, and what they must give."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

import liteseg
import liteseg_kernels as lk
from liteseg.bench.networks import calibrated
from liteseg.bench.registry import COMPILED, EAGER
from liteseg.bench.timing import Times
from liteseg_kernels._dispatch import SMALL_GRIDS

from .day import Day
from .rows import Values

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
