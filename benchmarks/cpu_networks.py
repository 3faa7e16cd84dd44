"""Whole networks on the CPU against what one would use instead, side by side: `python -m benchmarks.cpu_networks`.

Every provider lives in a process of its own and the processes take turns call by call (`liteseg.bench.turns`). Input
is a normalised picture in memory (in bfloat16 for liteseg and PyTorch where that is the dtype, else float32; int8 is
what networks are quantised to after training: ours by `liteseg.quantize`, OpenVINO's by NNCF where that is installed,
else by ONNX Runtime's tool like ONNX Runtime's own), output either the label map at full size ("labels") or the
logits before the last upsampling ("logits"). Networks are like trained ones, and see noise; `--weights camvid
--pictures FILE ...` takes trained ones, which see the first picture, and for int8 ranges are read off all of them.
OpenVINO and ONNX Runtime take part where they are installed (extra `bench`, and onnx with onnxscript for the export);
whoever cannot run says why. Each provider's result is compared with eager PyTorch's in float32: one that is off by
more than rounding, in bfloat16 by more than twice what eager channels_last is off, in int8 by more than a limit, gets
no ratio. Rows are appended to the CSV, the table is printed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteseg.bench.record import append, version_of
from liteseg.bench.turns import Contestant, take_turns

from .rows import ROOT, cpu, provider_rows, show

PROVIDERS = ("liteseg", "openvino", "onnxruntime", "compiled", "eager channels_last", "eager")
COLUMNS = (
    *("network", "size", "output", "dtype", "threads", "provider", "p50 ms", "p20 ms", "p80 ms", "min ms", "rounds"),
    *("against liteseg", "error", "equal labels", "detail", "machine", "version", "torch", "commit", "date"),
)
# in float32: of the logits, in the Frobenius norm and relative to eager PyTorch's, or share of other labels
LIMIT = 1e-3
# likewise in int8
INT8_LIMITS = {"logits": 0.3, "labels": 0.15}


@dataclass(frozen=True)
class Subject:
    """What is measured: networks like trained ones on noise, or with `weights` on the first of `pictures` (files)."""

    weights: str | None = None
    pictures: tuple[str, ...] = ()

    def network(self, name: str) -> Any:
        """In eval mode."""
        import liteseg
        from liteseg.bench.networks import calibrated

        return calibrated(name) if self.weights is None else liteseg.create_model(name, weights=self.weights).eval()

    def inputs(self, size: tuple[int, int]) -> list[Any]:
        """Normalised pictures float32 [1, 3, *size]: what is computed, and behind it what ranges are read off too."""
        import torch

        from liteseg.data import MEAN, STD
        from liteseg.reading import read_image
        from liteseg_kernels import functional as F

        if not self.pictures:
            return [torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        read = [torch.from_numpy(read_image(file)) for file in self.pictures]
        return [F.preprocess(one, size, mean=MEAN, std=STD, channels_last=False) for one in read]

    def __str__(self) -> str:
        seen = f"{Path(self.pictures[0]).name}, first of {len(self.pictures)}" if self.pictures else "noise"
        return f"{'like trained' if self.weights is None else f'weights {self.weights}'}, on {seen}"


def _graph(model: Any, output: str) -> Any:
    """`model` (plain torch) as a module that ends in `output`."""
    from torch import nn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            logits = self.model.low_resolution_logits(x)
            if output == "logits":
                return logits
            return nn.functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True).argmax(1)

    return Graph().eval()


def _tool(provider: str) -> str:
    """What quantises the file of another run time: its own tool where that is installed."""
    return "NNCF" if provider == "openvino" and importlib.util.find_spec("nncf") else "ONNX Runtime's tool"


def _call(
    provider: str,
    subject: Subject,
    name: str,
    size: tuple[int, int],
    output: str,
    dtype: str,
    threads: int,
    folder: str,
) -> Callable[[], Any]:
    """A call of the provider; raises where it cannot run."""
    import torch

    import liteseg
    import liteseg_kernels as lk
    from liteseg.bench import runtimes

    torch.set_num_threads(threads)
    model, seen = subject.network(name), subject.inputs(size)
    x = seen[0]
    if provider in runtimes.RUNTIMES:
        importlib.import_module(provider)
        place = os.path.join(folder, "network.onnx")
        path = runtimes.onnx_file(lambda: _graph(model.to_reference(), output), x, place)
        if dtype == "int8":
            own = _tool(provider) == "NNCF"
            path = (runtimes.nncf_file if own else runtimes.int8_file)(path, [one.numpy() for one in seen])
        engine, array = runtimes.RUNTIMES[provider](path, threads, dtype), x.numpy()
        return lambda: engine(array)
    if dtype == "int8":
        if provider not in ("liteseg", "eager"):
            raise ValueError("it has no int8 of its own for these networks")
    else:
        model, x = model.to(getattr(torch, dtype)), x.to(getattr(torch, dtype))
    if provider != "eager":
        # for ours the layout in which `predict` hands pictures over
        x = x.contiguous(memory_format=torch.channels_last)
    if provider == "liteseg":
        fast = liteseg.quantize(model, seen) if dtype == "int8" else liteseg.fuse(model)
        if output == "logits":
            return lambda: fast.low_resolution_logits(x)
        return lambda: lk.runtime.labels(fast, x, size)
    graph = _graph(model.to_reference(), output)
    if provider != "eager":
        graph = graph.to(memory_format=torch.channels_last)
    if provider == "compiled":
        graph = torch.compile(graph)
    return lambda: graph(x)


def _make(
    provider: str, subject: Subject, name: str, size: tuple[int, int], output: str, dtype: str, *where: Any
) -> Contestant:
    from liteseg.bench.runtimes import RUNTIMES, as_array

    call = _call(provider, subject, name, size, output, dtype, *where)
    # what the others are compared with is not rounded to bfloat16 itself
    exact = provider == "eager" and dtype != "float32"
    # labels of PyTorch are int64
    result = as_array((_call(provider, subject, name, size, output, "float32", *where) if exact else call)())
    quantised = dtype == "int8" and provider in RUNTIMES
    details = [f"quantised by {_tool(provider)}"] if quantised else []
    details += [str(subject)] if subject != Subject() else []
    facts = {"detail": "; ".join(details)} if details else {}
    return Contestant(call, result=[result.astype("uint8") if result.dtype.kind in "iu" else result], facts=facts)


def compare(
    network: str, size: tuple[int, int], output: str, dtype: str, threads: int, rounds: int, subject: Subject
) -> list[dict[str, Any]]:
    """One row a provider, in the order of PROVIDERS."""
    with tempfile.TemporaryDirectory() as folder:
        work = (subject, network, size, output, dtype, threads, folder)
        # eager first, with which the others are compared
        makers = {name: functools.partial(_make, name, *work) for name in PROVIDERS[::-1]}
        found = take_turns(makers, reference="eager", runs=rounds, threads=threads)
    limit = LIMIT
    if dtype != "float32":
        limit = INT8_LIMITS[output] if dtype == "int8" else 2 * (found["eager channels_last"].difference or 0.0)
    rows = provider_rows({name: found[name] for name in PROVIDERS}, limit)
    for row in rows:
        if output == "labels" and row.get("error") is not None:
            row["equal labels"] = f"{1 - row['error']:.6f}"
    case = {"network": network, "size": f"{size[0]}x{size[1]}", "output": output, "dtype": dtype, "threads": threads}
    return [{**case, **row} for row in rows]


def _version(provider: str) -> str:
    return version_of(provider if provider in ("openvino", "onnxruntime", "liteseg") else "torch")


def hxw(text: str) -> tuple[int, int]:
    """Height and width of "HxW"."""
    height, width = text.lower().split("x")
    return int(height), int(width)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_networks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=["liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19"]
    )
    parser.add_argument("--sizes", nargs="+", type=hxw, default=[(360, 640), (512, 1024), (1024, 2048)], metavar="HxW")
    parser.add_argument("--outputs", nargs="+", choices=("labels", "logits"), default=["labels", "logits"])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "int8"), default=["float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each provider")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-networks.csv")
    parser.add_argument("--weights", help="default: networks like trained ones")
    parser.add_argument("--pictures", nargs="+", default=[], metavar="FILE", help="default: noise")
    options = parser.parse_args(argv)
    subject = Subject(options.weights, tuple(options.pictures))
    for case in itertools.product(options.networks, options.sizes, options.outputs, options.dtypes, options.threads):
        rows = compare(*case, options.rounds, subject)
        append(options.out, COLUMNS, [{**row, "version": _version(row["provider"]), **cpu(case[-1])} for row in rows])
        show(", ".join((case[0], f"{case[1][0]}x{case[1][1]}", *case[2:4], f"{case[4]} threads")), rows)


if __name__ == "__main__":
    main()
