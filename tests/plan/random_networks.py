"""Networks, inputs and settings drawn at random, each run from a plan and compared with float64.

`make fuzz` draws for an hour, on every instruction set of the machine; tests/plan/test_random.py for some seconds.
A draw is named by its number: `python -m tests.plan.random_networks --first N --count 1` repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels.testing import trained_like
from tests.instruction_sets.order import BF16, HERE, here
from tests.kernels.tolerance import RELATIVE

from .test_bf16 import Tower
from .test_dense import Dense, conv
from .test_large import Head
from .test_plan import error, picture
from .test_shufflenet import Units

# pixels of a pyramid's map around which its channels go from one slice to several, in float32 and bfloat16
THRESHOLDS = [(16, 32), (19, 27), (16, 24), (24, 43), (40, 41)]


def _whole(r: random.Random) -> nn.Module:
    """One of the three networks with any of its switches."""
    backbone = r.choice(["mobilenetv2", "mobilenetv2", "shufflenet", "darknet19"])
    strides = {"mobilenetv2": (8, 16, 32), "shufflenet": (16, 32), "darknet19": (32,)}[backbone]
    return liteseg.create_model(
        f"liteseg_{backbone}",
        r.choice([1, 2, 11, 19, 33]),
        output_stride=r.choice(strides),
        filters=r.choice([1, 8, 31, 40, 96, 97]),
        rates=tuple(r.choice([1, 2, 3, 6, 9, 40]) for _ in range(r.randint(1, 4))),
        deeper=r.random() < 0.7,
        short_residual=r.random() < 0.7,
        long_residual=r.random() < 0.7,
    )


def _tower(r: random.Random) -> nn.Module:
    blocks = [
        (r.randint(1, 49), r.choice([1, 1, 2, 3]), r.choice([1, 2, 3, 6]), r.choice([1, 1, 2, 5, 60]))
        for _ in range(r.randint(1, 3))
    ]
    return Tower(r.randint(1, 5), r.choice([1, 2, 3]), blocks, concat=r.random() < 0.7)


def _head(r: random.Random) -> nn.Module:
    rates = tuple(r.choice([1, 2, 5, 20]) for _ in range(r.randint(1, 3)))
    return Head(r.randint(1, 700), r.randint(1, 40), rates, last=r.random() < 0.7, deeper=r.random() < 0.5)


def _units(r: random.Random) -> nn.Module:
    groups = r.choice([1, 2, 3])
    return Units(r.choice([1, 2]), 4 * groups * r.randint(1, 8), groups, r.choice([1, 2]))


def _dense(r: random.Random) -> nn.Module:
    channels = [r.randint(1, 4), *(r.choice([1, 5, 16, 24, 33, 64, 256]) for _ in range(r.randint(1, 3)))]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        kernel = r.choice([1, 3, 3, 5])
        parts.append(conv(before, after, kernel, activation=r.choice(["relu", "relu6", "leaky_relu", None])))
        if r.random() < 0.3:
            parts.append(nn.MaxPool2d(2))
    return Dense(channels[0], *parts, conv(channels[-1], 3, 1))


# how often, and what
KINDS: dict[str, tuple[int, Callable[[random.Random], nn.Module]]] = {
    "network": (2, _whole),
    "tower": (4, _tower),
    "head": (4, _head),
    "units": (2, _units),
    "dense": (4, _dense),
}


def draw(number: int) -> str:
    """Make and check draw `number`; raises AssertionError with all that was drawn."""
    r = random.Random(number)
    torch.manual_seed(number)
    kind = r.choices(list(KINDS), [often for often, _ in KINDS.values()])[0]
    model = trained_like(KINDS[kind][1](r), seed=number)
    channels = getattr(model, "in_channels", 3)
    least = 32 if kind == "network" else 8
    size = (r.randint(least, 160), r.randint(least, 160))
    if kind == "head" and r.random() < 0.7:
        size = r.choice(THRESHOLDS)
    batch, threads = r.choice([0, 1, 1, 2, 3]), r.randint(1, 4)
    covered = kind in ("tower", "head") or (kind == "network" and model.config.backbone == "mobilenetv2")
    half = covered and HERE in BF16 and r.random() < 0.4
    dtype = torch.bfloat16 if half else torch.float32
    x = picture(batch, channels, *size, seed=number).to(dtype)
    if r.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    told = f"draw {number}: {kind}, {batch} x {channels} x {size}, {dtype}, {threads} threads, {model}"
    fused = lk.fuse(model).to(dtype)
    torch.set_num_threads(threads)
    plan = lk.runtime.explain(fused, x).plan
    assert plan is not None, f"no plan: {told}"
    out = plan.logits(x)
    torch.set_num_threads(1)
    assert torch.equal(plan.logits(x), out), f"not the same bits on one thread: {told}"
    plain = lk.to_reference(model)
    if batch:
        run: Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]]
        run = lambda m: getattr(m, "low_resolution_logits", m)  # noqa: E731
        own = run(plain.to(dtype))(x)
        exact = run(lk.to_reference(model).double())(x.double())
        # Winograd's tiles of 4x4 outputs round about six times as much as plain sums
        limit = max(
            RELATIVE[dtype] * (6 if kind == "dense" else 2), (3 if dtype == torch.float32 else 1.5) * error(own, exact)
        )
        assert out.shape == exact.shape, told
        assert error(out, exact) <= limit, f"error {error(out, exact):.3g}, allowed {limit:.3g}: {told}"
    return f"draw {number}: {kind}, {dtype}"


def run(first: int, count: int | None, seconds: float | None) -> int:
    """Draw from `first` on, `count` times or for some seconds; returns how many."""
    start, made = time.monotonic(), 0
    with torch.inference_mode():
        while (count is None or made < count) and (seconds is None or time.monotonic() - start < seconds):
            draw(first + made)
            made += 1
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.plan.random_networks", description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=None, help="number of the first draw (default: by the clock)")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--isa", help="this one only, in this process")
    options = parser.parse_args()
    first = options.first if options.first is not None else int(time.time()) * 1000
    if options.isa or options.count:
        made = run(first, options.count, options.seconds)
        print(f"{torch.ops.liteseg_cpu.isa()}: {made} draws from {first}")
        return 0
    status = 0
    for isa in here():
        command = [sys.executable, "-m", "tests.plan.random_networks", "--isa", isa, "--first", str(first)]
        command += [] if options.seconds is None else ["--seconds", str(options.seconds / len(here()))]
        done = subprocess.run(
            command, env=os.environ | {"LITESEG_CPU_ISA": isa}, cwd=Path(__file__).resolve().parents[2]
        )
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
