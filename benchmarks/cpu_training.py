"""A training step on the CPU against PyTorch's, side by side: `python -m benchmarks.cpu_training`.

Providers: our modules with `UpsampleCrossEntropyLoss`; their plain torch.nn form (`to_reference`) in channels_last with
interpolate and cross_entropy, eager and compiled. Every provider lives in a process of its own and the processes take
turns step by step (`liteseg.bench.turns`); peak memory is that process's high-water mark over what it held before its
first timed step. A step is forward, loss and backward, without the optimizer, which is the same for all. Also the row
`upsample + argmax` alone. Networks are like trained ones; the loss of the first step and its gradients behind the
backbone are compared with eager PyTorch's: where they are off by more than rounding there is no ratio. Rows are
appended to the CSV, the table is printed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from liteseg.bench.record import append
from liteseg.bench.timing import resident_mb
from liteseg.bench.turns import Contestant, take_turns

from .rows import ROOT, cpu, provider_rows, show

PROVIDERS = ("liteseg", "eager channels_last", "compiled")
REFERENCE = "eager channels_last"
ALONE = "upsample + argmax"
COLUMNS = (
    *("work", "size", "dtype", "threads", "provider", "p50 ms", "p20 ms", "p80 ms", "rounds", "against liteseg"),
    *("peak MB", "error", "detail", "machine", "torch", "commit", "date"),
)
CLASSES = 19
# of the loss and of the gradients together (or of the labels alone), as `liteseg.bench.turns.difference` has it; what
# shares nothing differs by 1.4
LIMITS = {False: {"float32": 1e-2, "bfloat16 autocast": 0.4}, True: {"float32": 1e-3}}


def _autocast(dtype: str) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16 autocast" else nullcontext()


def _training_step(
    provider: str, network: str, size: tuple[int, ...], dtype: str
) -> tuple[Callable[[], Any], list[Any]]:
    """A step, and what its first call gave: the loss, and the gradients behind the backbone in a row."""
    import torch
    from torch.nn import functional as tf

    import liteseg_kernels as lk
    from liteseg.bench.networks import calibrated

    n, height, width = size
    model = calibrated(network).train()
    if provider != "liteseg":
        model = lk.to_reference(model).train()
    model = model.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    x = torch.randn(n, 3, height, width).contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (n, height, width))
    fused_loss = lk.UpsampleCrossEntropyLoss()

    def loss_of(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = model.low_resolution_logits(x)
        if provider == "liteseg":
            return fused_loss(logits, target)
        up = tf.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
        return tf.cross_entropy(up, target, ignore_index=255)

    forward = torch.compile(loss_of) if provider == "compiled" else loss_of

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with _autocast(dtype):
            loss = forward(x, target)
        loss.backward()
        return loss.item()

    loss = torch.tensor([step()])
    # rounding grows on its way back through the backbone: PyTorch in its two memory formats is 2.5 % apart there in
    # float32, and as far as can be in bfloat16
    head = sorted((name, p.grad) for name, p in model.named_parameters() if not name.startswith("backbone."))
    gradients = [gradient.flatten().float() for _, gradient in head if gradient is not None]
    return step, [loss.numpy(), torch.cat(gradients).numpy()]


def _upsample_argmax(provider: str, size: tuple[int, ...]) -> Callable[[], Any]:
    import torch
    from torch.nn import functional as tf

    import liteseg_kernels as lk

    n, height, width = size
    torch.manual_seed(0)
    logits = torch.randn(n, CLASSES, height // 4, width // 4).contiguous(memory_format=torch.channels_last)
    if provider == "liteseg":
        return lambda: lk.functional.upsample_argmax(logits, (height, width))

    def labels(logits: torch.Tensor) -> torch.Tensor:
        return tf.interpolate(logits, (height, width), mode="bilinear", align_corners=True).argmax(1)

    call = torch.compile(labels) if provider == "compiled" else labels
    return lambda: call(logits)


def _make(provider: str, work: str, size: tuple[int, ...], dtype: str, threads: int) -> Contestant:
    import torch

    torch.set_num_threads(threads)
    if work == ALONE:
        call = _upsample_argmax(provider, size)
        result = [call().numpy().astype("uint8")]
    else:
        call, result = _training_step(provider, work, size, dtype)
    before = resident_mb(peak=True)
    # of a compiled step the compiler's own memory is part
    finish = lambda: {} if provider == "compiled" else {"peak MB": round(resident_mb(peak=True) - before)}  # noqa: E731
    return Contestant(call, result=result, finish=finish)


def compare(work: str, size: tuple[int, ...], dtype: str, threads: int, rounds: int, providers: Any) -> list[Any]:
    """One row a provider, in the order of PROVIDERS."""
    # eager first, with which the others are compared
    order = sorted(providers, key=(REFERENCE, *PROVIDERS).index)
    makers = {name: functools.partial(_make, name, work, size, dtype, threads) for name in order}
    found = take_turns(makers, reference=REFERENCE, runs=rounds, threads=threads, warm_up=2, gradients=True)
    rows = provider_rows({name: found[name] for name in PROVIDERS if name in found}, LIMITS[work == ALONE][dtype])
    case = {"work": work, "size": "x".join(map(str, size)), "dtype": dtype, "threads": threads}
    return [{**case, **{name: value for name, value in row.items() if name != "min ms"}} for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_training", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["liteseg_mobilenetv2"])
    parser.add_argument("--size", nargs=3, type=int, default=[4, 352, 480], metavar=("N", "H", "W"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16 autocast"])
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each provider")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-training.csv")
    options = parser.parse_args(argv)
    work = [(network, tuple(options.size), dtype) for dtype in options.dtypes for network in options.networks]
    for name, size, dtype in [(ALONE, (1, 360, 640), "float32"), *work]:
        rows = compare(name, size, dtype, options.threads, options.rounds, options.providers)
        append(options.out, COLUMNS, [{**row, **cpu(options.threads)} for row in rows])
        show(f"{name}, {'x'.join(map(str, size))}, {dtype}, {options.threads} threads", rows)


if __name__ == "__main__":
    main()
