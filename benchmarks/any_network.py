"""Other people's networks through `liteseg_kernels.optimize` and their usual CPU run times, float32, batch 1.

    python -m benchmarks.any_network --size 352x640 --threads 2 [--networks "timm mobilenetv2_100" ... | all]

Writes benchmarks/results/any-network.csv, rows of each network as it is done, and prints README's table at the end.
Needs tests/third_party/requirements.txt, ONNX Runtime and OpenVINO. Every provider lives in a process of its own, and
they take turns call by call (`liteseg.bench.turns`), on weights as training leaves them. Inductor runs with freezing;
ONNX Runtime and OpenVINO run the same exported file, whose input has a fixed size. Results are compared with eager
PyTorch's: what is off by more than rounding has no ratio, and who cannot run a network says why in its row.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg.bench import runtimes
from liteseg.bench.record import append
from liteseg.bench.turns import Contestant, take_turns
from liteseg_kernels.testing import trained_like
from tests.third_party.test_networks import NETWORKS

from .cpu_networks import hxw
from .rows import ROOT, Values, cpu, provider_rows, show

PROVIDERS = ("eager", "inductor", "onnxruntime", "openvino", "liteseg")
COLUMNS = (
    *("network", "size", "threads", "provider", "p50 ms", "p20 ms", "p80 ms", "min ms", "rounds"),
    *("against liteseg", "error", "detail", "machine", "torch", "commit", "date"),
)
# relative error of the result, in the Frobenius norm
LIMIT = 1e-3
DEFAULT = ("smp DeepLabV3Plus mobilenet_v2", "transformers MobileNetV2", "timm mobilenetv2_100")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, *args = NETWORKS[name]
    return trained_like(make(*args), torch.randn(2, 3, 96, 128))


def caller(provider: str, net: nn.Module, x: Tensor, threads: int, folder: str) -> Callable[[], Any]:
    """A call of the network on x by `provider`."""
    if provider in runtimes.RUNTIMES:
        path = runtimes.onnx_file(lambda: net, x, os.path.join(folder, "net.onnx"))
        engine, array = runtimes.RUNTIMES[provider](path, threads), x.numpy()
        return lambda: engine(array)
    channels_last = x.to(memory_format=torch.channels_last)
    if provider == "eager":
        net = net.to(memory_format=torch.channels_last)
        return lambda: net(channels_last)
    if provider == "inductor":
        from torch._inductor import config

        config.freezing = True
        compiled = torch.compile(net)
        return lambda: compiled(x)
    optimized = lk.optimize(net)
    return lambda: optimized(x)


def make(network: str, provider: str, size: tuple[int, int], threads: int, folder: str) -> Contestant:
    torch.set_num_threads(threads)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    call = caller(provider, build(network), x, threads, folder)
    result = call()
    return Contestant(call, result=[runtimes.as_array(result)] if isinstance(result, Tensor | np.ndarray) else [])


def line(network: str, rows: list[Values]) -> str:
    """README's: times of all, how many times as fast as the best other ours is, and how far off its result is."""
    times = {row["provider"]: row.get("p50 ms") for row in rows}
    peers = [row["against liteseg"] for row in rows if row["provider"] != "liteseg" and "against liteseg" in row]
    errors = [row["error"] for row in rows if row["provider"] == "liteseg" and row.get("error") is not None]
    cells = [f"{times[p]:.1f}" if times.get(p) is not None else "-" for p in PROVIDERS]
    cells += [f"{min(peers):.2f}x" if peers else "-", f"{errors[0]:.0e}" if errors else "-"]
    return " | ".join(["", network, *cells, ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="352x640", help="height x width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--networks", nargs="+", choices=(*NETWORKS, "all"), default=DEFAULT, metavar="NAME")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "any-network.csv")
    args = parser.parse_args()
    size = hxw(args.size)
    print(f"{args.size}, batch 1, float32, {args.threads} threads, median (least) ms")
    lines = [
        "| network | eager | Inductor | ONNX Runtime | OpenVINO | this | against the best other | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in NETWORKS if "all" in args.networks else args.networks:
        with tempfile.TemporaryDirectory() as folder:
            # eager first, with which the others are compared
            providers = sorted(args.providers, key=PROVIDERS.index)
            makers = {p: functools.partial(make, network, p, size, args.threads, folder) for p in providers}
            found = take_turns(makers, reference=PROVIDERS[0], runs=args.rounds, threads=args.threads)
        rows = provider_rows(found, LIMIT)
        case = {"network": network, "size": args.size, "threads": args.threads}
        append(args.out, COLUMNS, [{**case, **row, **cpu(args.threads)} for row in rows])
        show(network, rows)
        lines.append(line(network, rows))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
