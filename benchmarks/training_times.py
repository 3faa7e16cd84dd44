"""What a GPU day measures of training."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

import liteseg_kernels as lk
from liteseg.bench import shapes
from liteseg.bench.networks import calibrated
from liteseg.bench.registry import COMPILED, EAGER, EAGER_LAST
from liteseg.bench.timing import peak_mb, wall

from .day import Day
from .rows import Row, Values
from .runners import clean, columns, exact_float32, network_key


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
