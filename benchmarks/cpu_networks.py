"""Whole networks on the CPU against what one would use instead, side by side: `python -m benchmarks.cpu_networks`.

Every provider lives in a process of its own, with its own thread pool and its best settings, and the processes take
turns call by call: what else the machine does meets all of them alike. Input is a normalised picture in memory (in
bfloat16 for liteseg and PyTorch where that is the dtype, else float32), output either the label map at full size
("labels") or the logits before the last upsampling ("logits"). OpenVINO and ONNX Runtime take part where they are
installed (extra `bench`, and onnx with onnxscript for the export); whoever cannot run says why. Networks are like
trained ones, and each provider's result is compared with eager PyTorch's: one that is off by more than rounding gets no
ratio. Rows are appended to the CSV, the table is printed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROVIDERS = ("liteseg", "openvino", "onnxruntime", "compiled", "eager channels_last", "eager")
# spinning workers of one pool must be asleep before the next provider's turn
PAUSE = 0.02
COLUMNS = (
    *("network", "size", "output", "dtype", "threads", "provider", "p50 ms", "p20 ms", "p80 ms", "min ms", "rounds"),
    *("against liteseg", "error", "equal labels", "detail", "machine", "version", "torch", "commit", "date"),
)
# of the logits, in the Frobenius norm and relative to eager PyTorch's in the same dtype; or share of other labels
LIMITS = {"logits": {"float32": 1e-3, "bfloat16": 0.2}, "labels": {"float32": 1e-3, "bfloat16": 0.1}}


def _network(name: str) -> Any:
    import torch

    import liteseg
    from liteseg_kernels.testing import trained_like

    torch.manual_seed(0)
    return trained_like(liteseg.create_model(name), torch.randn(4, 3, 64, 96))


def _picture(size: tuple[int, int]) -> Any:
    import torch

    return torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))


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


def _exported(name: str, size: tuple[int, int], output: str, folder: str) -> str:
    import torch

    path = os.path.join(folder, f"{name}-{size[0]}x{size[1]}-{output}.onnx")
    if not os.path.exists(path):
        graph = _graph(_network(name).to_reference(), output)
        torch.onnx.export(graph, (_picture(size),), path + ".part", dynamo=True, external_data=False, verbose=False)
        os.replace(path + ".part", path)
    return path


def _call(
    provider: str, name: str, size: tuple[int, int], output: str, dtype: str, threads: int, folder: str
) -> Callable[[], Any]:
    """A call of the provider; raises where it cannot run."""
    import torch

    import liteseg
    from liteseg.predict import segment

    torch.set_num_threads(threads)
    x = _picture(size)
    if provider == "onnxruntime" and dtype != "float32":
        raise ValueError(f"it has no {dtype} convolutions on the CPU")
    if provider in ("openvino", "onnxruntime"):
        importlib.import_module(provider)
        path, array = _exported(name, size, output, folder), x.numpy()
    if provider == "openvino":
        import openvino as ov

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        }
        compiled = ov.Core().compile_model(path, "CPU", settings)
        return lambda: compiled(array)[0]
    if provider == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: array}
        return lambda: session.run(None, feed)[0]
    model, x = _network(name).to(getattr(torch, dtype)), x.to(getattr(torch, dtype))
    if provider == "liteseg":
        # the layout in which `predict` hands pictures over
        x = x.contiguous(memory_format=torch.channels_last)
        fast = liteseg.fuse(model)
        if output == "logits":
            return lambda: fast.low_resolution_logits(x)
        return lambda: segment(fast, x, size)
    graph = _graph(model.to_reference(), output)
    if provider != "eager":
        graph = graph.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    if provider == "compiled":
        graph = torch.compile(graph)
    return lambda: graph(x)


def _serve(pipe: Connection, *work: Any) -> None:
    """A provider's process: says whether it is ready, then times one call whenever asked."""
    import numpy as np
    import torch

    try:
        call = _call(*work)
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
        return
    with torch.inference_mode():
        for _ in range(3):
            result = call()
        shown = result.float() if isinstance(result, torch.Tensor) and result.is_floating_point() else result
        pipe.send((True, np.asarray(shown)))
        while pipe.recv():
            start = time.perf_counter()
            call()
            pipe.send(1e3 * (time.perf_counter() - start))


def _error(result: Any, expected: Any, output: str) -> float:
    """What LIMITS limits."""
    import numpy as np

    if output == "labels":
        return float((result != expected).mean())
    difference = result.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def compare(
    network: str, size: tuple[int, int], output: str, dtype: str, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """One row a provider, in the order of PROVIDERS."""
    context = multiprocessing.get_context("spawn")
    # pools read these when their library is loaded, so they are set before the processes start
    os.environ["OMP_NUM_THREADS"] = str(threads)
    rows, running, results = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for provider in PROVIDERS:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, provider, network, size, output, dtype, threads, folder), daemon=True
            )
            process.start()
            theirs.close()
            try:
                ready, result = ours.recv()
            except EOFError:
                ready, result = False, "its process died"
            if ready:
                running[provider], results[provider] = (ours, process), result
            else:
                rows.append({"provider": provider, "detail": result})
        times: dict[str, list[float]] = {provider: [] for provider in running}
        for _ in range(rounds):
            for provider, (pipe, _) in running.items():
                pipe.send(True)
                times[provider].append(pipe.recv())
                time.sleep(PAUSE)
        for pipe, process in running.values():
            pipe.send(False)
            process.join()
    ours_median = statistics.median(times["liteseg"]) if times.get("liteseg") else None
    errors: dict[str, float] = {}
    for provider, taken in times.items():
        low, _, _, high = statistics.quantiles(taken, n=5)
        row = {
            "provider": provider,
            "p50 ms": round(statistics.median(taken), 2),
            "p20 ms": round(low, 2),
            "p80 ms": round(high, 2),
            "min ms": round(min(taken), 2),
            "rounds": rounds,
        }
        if "eager" in results:
            error = errors[provider] = _error(results[provider], results["eager"], output)
            row["error"] = float(f"{error:.2g}")
            if output == "labels":
                row["equal labels"] = round(1 - error, 6)
        rows.append(row)
    for row in rows:
        own, error = errors.get("liteseg", math.inf), errors.get(row["provider"], math.inf)
        if max(own, error) <= LIMITS[output][dtype] and ours_median is not None:
            row["against liteseg"] = round(row["p50 ms"] / ours_median, 2)
        elif "p50 ms" in row:
            row["detail"] = f"no ratio: error {error:.2g}, liteseg's {own:.2g}, at most {LIMITS[output][dtype]:.2g}"
    rows.sort(key=lambda row: PROVIDERS.index(row["provider"]))
    return [
        {
            "network": network,
            "size": f"{size[0]}x{size[1]}",
            "output": output,
            "dtype": dtype,
            "threads": threads,
            **row,
        }
        for row in rows
    ]


def _machine() -> str:
    """Processor and cores that this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def _version(provider: str) -> str:
    package = provider if provider in ("openvino", "onnxruntime") else "liteseg" if provider == "liteseg" else "torch"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_networks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=["liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19"]
    )
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[(360, 640), (512, 1024), (1024, 2048)], metavar="HxW"
    )
    parser.add_argument("--outputs", nargs="+", choices=("labels", "logits"), default=["labels", "logits"])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each provider")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu-networks.csv")
    options = parser.parse_args(argv)
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    common = {
        "machine": _machine(),
        "torch": torch.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
    cases = itertools.product(options.networks, options.sizes, options.outputs, options.dtypes, options.threads)
    for case in cases:
        rows = compare(*case, options.rounds)
        _append(options.out, [{**row, "version": _version(row["provider"]), **common} for row in rows])
        network, size, output, dtype, threads = case
        print(f"{network}, {size[0]}x{size[1]}, {output}, {dtype}, {threads} threads")
        for row in rows:
            shown = row.get("detail") or (
                f"{row['p50 ms']:9.2f} ms (min {row['min ms']:.2f})  x{row.get('against liteseg', '')}  "
                f"error {row.get('error', '')}"
            )
            print(f"  {row['provider']:<20} {shown}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
