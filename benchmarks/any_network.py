"""Other people's networks through `liteseg_kernels.optimize` and their usual CPU run times, float32, batch 1.

    python -m benchmarks.any_network --size 352x640 --threads 2 [--networks "timm mobilenetv2_100" ...]

Needs tests/third_party/requirements.txt. Every number is the median of `--rounds` calls after three that are not
counted, in a process of its own (thread pools of several run times in one process disturb each other), on weights as
training leaves them. Inductor runs with freezing; ONNX Runtime and OpenVINO run the same exported file, whose input has
a fixed size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg_kernels.testing import trained_like
from tests.third_party.test_networks import NETWORKS

PROVIDERS = ("eager", "inductor", "onnxruntime", "openvino", "liteseg")
DEFAULT = ("smp DeepLabV3Plus mobilenet_v2", "transformers MobileNetV2", "timm mobilenetv2_100")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, *args = NETWORKS[name]
    return trained_like(make(*args), torch.randn(2, 3, 96, 128))


def exported(net: nn.Module, x: Tensor, folder: str) -> str:
    path = str(Path(folder) / "net.onnx")
    torch.onnx.export(net, (x,), path, dynamo=True, external_data=False)
    return path


def caller(provider: str, net: nn.Module, x: Tensor, threads: int, folder: str) -> Callable[[], Any]:
    """A call of the network on x by `provider`."""
    if provider == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(exported(net, x, folder), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        return lambda: session.run(None, feed)
    if provider == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.Core().compile_model(exported(net, x, folder), "CPU", settings).create_infer_request()
        feed = x.numpy()
        return lambda: request.infer([feed], share_inputs=True, share_outputs=True)
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


def measure(network: str, provider: str, size: tuple[int, int], threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        call = caller(provider, build(network), x, threads, folder)
        for _ in range(3):
            call()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return {"median_ms": 1e3 * statistics.median(seconds), "least_ms": 1e3 * min(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="352x640", help="height x width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    height, width = (int(part) for part in args.size.split("x"))
    if args.child:
        print(json.dumps(measure(args.networks[0], args.providers[0], (height, width), args.threads, args.rounds)))
        return
    print(f"{args.size}, batch 1, float32, {args.threads} threads, median (least) ms")
    print(" | ".join(("network", *args.providers)))
    for network in args.networks:
        cells = []
        for provider in args.providers:
            options = ["--size", args.size, "--threads", str(args.threads), "--rounds", str(args.rounds)]
            command = [sys.executable, "-m", "benchmarks.any_network", "--child", "--networks", network]
            done = subprocess.run([*command, "--providers", provider, *options], capture_output=True, text=True)
            if done.returncode:
                cells.append((done.stderr.strip().splitlines() or ["failed"])[-1][:60])
                continue
            times = json.loads(done.stdout.strip().splitlines()[-1])
            cells.append(f"{times['median_ms']:.1f} ({times['least_ms']:.1f})")
        print(" | ".join((network, *cells)), flush=True)


if __name__ == "__main__":
    main()
