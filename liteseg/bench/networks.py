"""Whole networks by the protocol of the paper's Table III, ours beside what one would use instead."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as tf

import liteseg_kernels as lk
from liteseg.bench import record, runtimes
from liteseg.bench.record import (
    ENVIRONMENT,
    Line,
    Skip,
    append,
    environment,
    grouped,
    latest,
    number,
    table,
    version_of,
)
from liteseg.bench.turns import Contestant, Outcome, add_ratios, spread, take_turns
from liteseg.data import MEAN, STD
from liteseg.models import create_model
from liteseg.models.peers import PEERS
from liteseg_kernels import functional as F
from liteseg_kernels.testing import trained_like

__all__ = ["COLUMNS", "NETWORKS", "OUTPUTS", "PROVIDERS", "QUICK", "Case", "calibrated", "measure", "report", "run"]

OURS = ("liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19")
NETWORKS = (
    *OURS,
    *PEERS,
    *("deeplabv3plus_mobilenetv2", "deeplabv3plus_shufflenet", "deeplabv3plus_darknet19"),
)
# SegNet has more operations than all these together
QUICK = tuple(name for name in (*OURS, *PEERS) if name != "segnet")
# eager comes first: the others compare their results with its
PROVIDERS = (
    *("eager", "eager channels_last", "compiled", "onnxruntime", "openvino"),
    *("liteseg unfused", "liteseg"),
)
OUTPUTS = ("logits", "labels")
DTYPES = ("float32", "bfloat16", "float16")
KEY = ("network", "size", "batch", "output", "dtype", "provider", "device", "threads")
COLUMNS = (
    *("network", "size", "batch", "output", "dtype", "provider"),
    *("p50 ms", "p20 ms", "p80 ms", "mean ms", "images/s", "times liteseg", "burn-in", "runs"),
    *("difference", "status", "detail", "provider version"),
    *ENVIRONMENT,
)
# against eager in the same dtype: relative error of logits; share of labels that differ, most of them between two
# almost equal scores
LIMITS = {
    "logits": {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1},
    "labels": {"float32": 1e-2, "float16": 1e-1, "bfloat16": 3e-1},
}


# rounding may find a maximum at the place beside, which moves what is unpooled there: their logits may differ so much
# more
UNPOOLING = ("enet", "segnet", "dsnet")
MOVED = 10.0


def limit(network: str, output: str, dtype: str) -> float:
    """How much a result may differ from eager's. Logits that share nothing differ by 1.4."""
    allowed = LIMITS[output][dtype]
    return min(MOVED * allowed, 0.5) if output == "logits" and network in UNPOOLING else allowed


@dataclass(frozen=True)
class Case:
    """What all providers do: `output` "logits" is normalised input to full-size logits, "labels" uint8 picture to label
    map at its size."""

    network: str
    size: tuple[int, int]
    batch: int
    output: str
    dtype: str
    device: str

    def key(self) -> dict[str, Any]:
        """Values of the columns that name the case."""
        size = f"{self.size[0]}x{self.size[1]}"
        return {
            "network": self.network,
            "size": size,
            "batch": self.batch,
            "output": self.output,
            "dtype": self.dtype,
        }


@functools.cache
def calibrated(network: str) -> nn.Module:
    """A network as a trained one is, so that wrong sums show and labels do not compare rounding errors."""
    torch.manual_seed(0)
    return trained_like(create_model(network), torch.randn(4, 3, 64, 96))


class _Graph(nn.Module):
    """A plain network from a case's input to its output: what a user would compile or export."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, case: Case) -> None:
        super().__init__()
        self.network = network
        self.labels = case.output == "labels"
        self.dtype = getattr(torch, case.dtype)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.labels:
            return self.network(x)
        x = (x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        low = self.network.low_resolution_logits(x.to(self.dtype))  # type: ignore[operator]
        up = tf.interpolate(low, x.shape[2:], mode="bilinear", align_corners=True)
        return up.argmax(1).to(torch.uint8)


def _input(case: Case, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if case.output == "labels":
        return torch.randint(0, 256, (case.batch, *case.size, 3), dtype=torch.uint8, generator=generator)
    return torch.randn((case.batch, 3, *case.size), generator=generator)


def _plain(case: Case, channels_last: bool) -> nn.Module:
    network = lk.to_reference(copy.deepcopy(calibrated(case.network)))
    graph = _Graph(network.to(getattr(torch, case.dtype)), case).to(case.device).eval().requires_grad_(False)
    # torch's overloads leave the keyword alone out
    return graph.to(memory_format=torch.channels_last) if channels_last else graph  # type: ignore[call-overload]


def _ours(case: Case, fused: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    model: nn.Module = copy.deepcopy(calibrated(case.network)).to(case.device)
    if fused:
        model = lk.fuse(model)
    dtype = getattr(torch, case.dtype)
    model = model.to(dtype)
    if case.output == "logits":
        return model

    def labels(image: torch.Tensor) -> torch.Tensor:
        return lk.runtime.labels(model, F.preprocess(image, mean=MEAN, std=STD, dtype=dtype), case.size)

    return labels


def _needs_float32_on_cpu(case: Case, provider: str) -> None:
    if case.dtype != "float32":
        raise Skip(f"{provider} is measured in float32 only")
    if case.device != "cpu":
        raise Skip(f"{provider} is measured on the CPU only")


def make(provider: str, case: Case, threads: int, folder: str) -> Contestant:
    """A provider made ready in the process that calls this; raises where it cannot run."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ours = provider.startswith("liteseg")
    last = ours or provider in ("eager channels_last", "compiled")
    seeds = iter(range(1, 10**9))
    device = case.device
    wait: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    x = _input(case, 0)

    if provider in runtimes.RUNTIMES:
        importlib.import_module(provider)
        _needs_float32_on_cpu(case, provider)
        array = x.numpy()
        path = runtimes.onnx_file(lambda: _plain(case, False), x, os.path.join(folder, "network.onnx"))
        engine = runtimes.RUNTIMES[provider](path, threads)

        def bring() -> None:
            np.copyto(array, _input(case, next(seeds)).numpy())

        return Contestant(lambda: engine(array), bring, result=[np.array(engine(array))])

    function: Callable[[torch.Tensor], torch.Tensor]
    function = _ours(case, provider == "liteseg") if ours else _plain(case, last)
    if provider == "compiled":
        # on a GPU with Inductor's own CUDA graphs
        options: dict[str, Any] = {"mode": "max-autotune"} if device.startswith("cuda") else {}
        function = torch.compile(function, dynamic=False, **options)
    static = x.to(device)
    if case.output == "logits":
        static = static.to(getattr(torch, case.dtype))
        static = static.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def bring_tensor() -> None:
        static.copy_(_input(case, next(seeds)))

    return Contestant(lambda: function(static), bring_tensor, wait, result=[runtimes.as_array(function(static))])


def _row(case: Case, provider: str, outcome: Outcome, burn_in: int, runs: int) -> dict[str, Any]:
    row: dict[str, Any] = {**case.key(), "provider": provider, "burn-in": burn_in, "runs": runs}
    row["provider version"] = version_of(provider) if provider in runtimes.RUNTIMES else ""
    if outcome.reason:
        return {**row, "status": "skipped", "detail": outcome.reason}
    mean = statistics.fmean(outcome.times)
    wrong = outcome.difference is not None and not outcome.difference <= limit(case.network, case.output, case.dtype)
    return {
        **row,
        **spread(outcome.times),
        "mean ms": mean,
        "images/s": 1e3 * case.batch / mean,
        "difference": outcome.difference,
        "status": "wrong" if wrong else "ok",
    }


def measure(
    case: Case,
    providers: Sequence[str] = PROVIDERS,
    *,
    burn_in: int = 200,
    runs: int = 200,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row a provider, in the order of PROVIDERS: the paper's protocol for batch 1, and the same for larger batches.

    `burn_in` calls that are not timed, then `runs` that are, each from an idle device to an idle device on an input of
    its own that is drawn and brought to the device outside of the time. images/s is what the paper calls FPS: the
    number of images over the sum of the times. The providers take turns call by call. A result that is off by more than
    `limit`, or that eager's was not there to be compared with, gets no "times liteseg".
    """
    threads = torch.get_num_threads() if threads is None else threads
    chosen = [name for name in PROVIDERS if name in providers]
    with tempfile.TemporaryDirectory() as folder:
        makers = {name: functools.partial(make, name, case, threads, folder) for name in chosen}
        found = take_turns(makers, reference=PROVIDERS[0], burn_in=burn_in, runs=runs, threads=threads, progress=say)
    rows = [_row(case, name, found[name], burn_in, runs) for name in chosen]
    add_ratios(rows, "times liteseg", limit(case.network, case.output, case.dtype), error="difference")
    where = environment(case.device, threads)
    return [{**row, **where} for row in rows]


def cases(
    networks: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    outputs: Sequence[str],
    dtypes: Sequence[str],
    device: str,
) -> Iterator[Case]:
    """The paper's own measurement first (smallest size, batch 1, logits), network by network."""
    for dtype in dtypes:
        for batch in batches:
            for size in sizes:
                for output in outputs:
                    for network in networks:
                        yield Case(network, size, batch, output, dtype, device)


def run(
    folder: Path,
    *,
    networks: Sequence[str] = NETWORKS,
    sizes: Sequence[tuple[int, int]] = ((360, 640), (1024, 2048)),
    batches: Sequence[int] = (1,),
    outputs: Sequence[str] = OUTPUTS,
    dtypes: Sequence[str] = ("float32",),
    providers: Sequence[str] = PROVIDERS,
    device: str = "cpu",
    burn_in: int = 200,
    runs: int = 200,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Measure all cases, append each to ``folder/fps.csv`` as it is done.

    Returns:
        How many rows ran.
    """
    path, ran = folder / "fps.csv", 0
    for case in cases(networks, sizes, batches, outputs, dtypes, device):
        rows = measure(case, providers, burn_in=burn_in, runs=runs, threads=threads)
        append(path, COLUMNS, rows)
        say(", ".join(map(str, case.key().values())))
        for row in rows:
            times = (
                f"{row['p50 ms']:9.2f} ms  {row['images/s']:8.2f} images/s  {row['status']}" if "p50 ms" in row else ""
            )
            say(f"  {row['provider']:<20} {times}  {row.get('detail', '')}".rstrip())
        ran += sum(row["status"] == "ok" for row in rows)
    return ran


def groups(lines: Sequence[Line]) -> dict[tuple[str, ...], list[Line]]:
    """Rows of the same case on the same machine."""
    return grouped(latest(lines, KEY), [name for name in KEY if name != "provider"])


def pairs(lines: Sequence[Line]) -> list[tuple[Line, Line, float]]:
    """Of each case ours, the fastest other and their ratio, losses first; of results that were compared alone."""
    known = ([line for line in group if line["difference"]] for group in groups(lines).values())
    return record.pairs(known, lambda line: line["provider"] == "liteseg")


def summary(lines: Sequence[Line]) -> str:
    """One row a case: ours, the fastest other, the ratio. Losses first."""
    cells = []
    for mine, other, ratio in pairs(lines):
        what = [mine["network"], f"{ratio:.2f}"]
        what += [mine[name] for name in ("size", "batch", "output", "dtype", "threads")]
        cells.append([*what, number(mine, "p50 ms"), number(other, "p50 ms"), other["provider"]])
    header = ("network", "ratio", "H x W", "batch", "output", "dtype", "threads", "ours, ms", "best other, ms", "which")
    return table(header, cells)


def report(lines: Sequence[Line]) -> str:
    """The page of ``fps.csv``."""
    text = ["# Whole networks", ""]
    text += [
        "Batch 1 is the protocol of the paper's Table III: calls that are not counted, then timed ones, each on an "
        "input of its own drawn outside of the time; images/s is the number of images over the sum of the times. "
        "*logits*: normalised input to full-size logits, as in the paper; *labels*: uint8 picture in memory to label "
        "map, normalisation included. The providers took turns call by call, each in a process of its own. Weights "
        "are random (times do not depend on them), normalisation is calibrated. *difference*: of the logits "
        "(relative), or the share of labels, from PyTorch eager. A ratio below 1 is a loss.",
        "",
    ]
    text += ["## Ours against the fastest other", "", summary(lines), "", "## All", ""]
    header = ("provider", "ms", "20 %", "80 %", "images/s", "difference", "status")
    for case, group in groups(lines).items():
        first = group[0]
        text += [f"### {', '.join(case[:5])}", ""]
        columns = ("p50 ms", "p20 ms", "p80 ms", "images/s", "difference")
        text += [
            table(
                header,
                ([x["provider"], *(number(x, c) for c in columns), x["detail"] or x["status"]] for x in group),
            )
        ]
        versions = "".join(f", {x['provider']} {x['provider version']}" for x in group if x["provider version"])
        text += [
            "",
            f"{first['device']}, {first['threads']} threads, {first['burn-in']} + {first['runs']} calls, torch "
            f"{first['torch']}{versions}, commit {first['commit'] or 'unknown'}, {first['date']}",
            "",
        ]
    return "\n".join(text)
