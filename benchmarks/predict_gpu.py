"""python -m benchmarks.predict_gpu [--network N] [--size H W] [--batch N]: the predicted time of each launch.

Nothing here was measured on a GPU. Each launch of the CUDA kernels is planned by the launchers themselves (the emulator
notes grid, cluster and shared memory and runs nothing), and costs what the machine code says: the instructions and
cycles of benchmarks/results/nvcc.csv, times the chunks, strips and copies of a block. Assumed:

- an H100: 132 multiprocessors at 1.755 GHz, four schedulers each, 227 KB of shared memory; 128 of them in clusters
- the latencies of tests/aot/sass.py; 800 cycles from a copy's issue to its arrival from L2, hidden by the chunk that is
  worked on meanwhile; 2000 cycles for a cluster's exchange
- a launch that begins early costs 1 us of its own in a CUDA graph, another 2 us
- a multiprocessor needs as long as its slowest block's chain of instructions, or as its schedulers need for all of them
- what other libraries launch (stem, last 1x1, preprocessing, the graph's copy) costs the constants below

Figures are good for comparing two versions of the kernels; a GPU day prints measured beside predicted.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from liteseg.bench import shapes

TABLE = Path(__file__).resolve().parent / "results/nvcc.csv"
MULTIPROCESSORS, CYCLES_A_US, SHARED = 132, 1755.0, 227 * 1024
# blocks of clusters that run at the same time: two clusters of eight in each of eight GPCs
CLUSTER_BLOCKS = 128
COPY_LATENCY, CLUSTER_LATENCY = 800, 2000
EARLY_US, LAUNCH_US = 1.0, 2.0
CHUNK = 32
# microseconds of launches that are not ours, at 360x640: preprocessing, stem with its bias and ReLU6, last 1x1 with the
# same, copy and clone around the graph; the second half does not grow with the image
OTHERS = {"preprocess": 4.0, "stem": 16.0, "last 1x1": 10.0, "graph copy and clone": 5.0}

Row = dict[str, str]


@dataclass(frozen=True)
class Launch:
    """A launch as the emulator noted it: grid, threads, bytes of shared memory, blocks of a cluster, early or not."""

    grid: tuple[int, int, int]
    threads: int
    shared: int
    cluster: int
    early: bool

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class Prediction:
    """One row of the table: cycles are of a block's chain and of its schedulers' work."""

    name: str
    kernel: str
    launch: Launch
    chunks: int
    latency: float
    issue: float

    @property
    def microseconds(self) -> float:
        together = max(1, min(SHARED // max(self.launch.shared, 1), 2048 // self.launch.threads, 4))
        waves = math.ceil(self.launch.blocks / (MULTIPROCESSORS * together))
        busiest = math.ceil(self.launch.blocks / MULTIPROCESSORS)
        cycles = max(waves * self.latency, busiest * self.issue)
        return cycles / CYCLES_A_US + (EARLY_US if self.launch.early else LAUNCH_US)


def costs(path: Path = TABLE) -> dict[tuple[str, str], dict[str, int]]:
    """What the code of each measured kernel instance costs."""
    from tests.aot import nvcc

    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("instructions")]
    return {(row["kernel"], row["instance"]): {name: int(row[name]) for name in nvcc.MEASURES} for row in rows}


def slots(pixels: int, height: int, kernel: int, stride: int, dilation: int) -> int:
    """Input positions that a tile's taps need, as `make_window` counts them."""
    high = 8 if pixels >= 64 else 4 if pixels >= 16 else 2 if pixels >= 4 else 1
    while high > 1 and high // 2 >= height:
        high //= 2

    def axis(tile: int) -> int:
        return min((tile - 1) * stride + (kernel - 1) * dilation + 1, tile * kernel)

    return axis(high) * axis(pixels // high)


def tile_pixels(launch: Launch, batch: int, height: int, width: int) -> int:
    """The pixels of a tile, from the number of tiles."""
    for pixels in (64, 32, 16, 4, 1):
        high = 8 if pixels >= 64 else 4 if pixels >= 16 else 2 if pixels >= 4 else 1
        while high > 1 and high // 2 >= height:
            high //= 2
        if batch * math.ceil(height / high) * math.ceil(width / (pixels // high)) == launch.grid[0]:
            return pixels
    raise ValueError(f"predict_gpu: tiles: expected a tiling of {batch} x {height} x {width}, got {launch.grid[0]}")


def _block(
    cost: dict[str, int], launch: Launch, chunks: int, copies: float, chain: float, work: float
) -> tuple[float, float]:
    """(latency, issue) in cycles: `copies` of 16 bytes a thread and chunk; of the inner loops `chain`, in
    cycles, and `work`, the instructions of all warps."""
    warps = launch.threads / 32
    chunk = cost["loop_cycles"] + copies * cost["copy_cycles"] + chain
    # two or three chunks on their way hide a copy's latency but for what the chunk in work does not cover
    exposed = max(0.0, COPY_LATENCY - chunk)
    latency = cost["outside_cycles"] + COPY_LATENCY + chunks * (chunk + exposed) + 1000
    if launch.cluster > 1:
        latency += CLUSTER_LATENCY
    of_chunk = warps * (cost["loop_instructions"] + copies * cost["copy_instructions"]) + work
    issue = (chunks * of_chunk + warps * 0.5 * cost["outside_cycles"]) / 4
    return latency, issue


def predict_call(name: str, call: shapes.Call, launches: Sequence[Launch], table: Any) -> list[Prediction]:
    """The rows of one call of an op."""
    given: dict[str, Any] = dict(call.arguments)

    def instance(kernel: str, text: str) -> dict[str, int]:
        return table[kernel, text]

    def shape(argument: str) -> tuple[int, ...]:
        return given[argument].shape

    def moved_by(
        cost: dict[str, int], launch: Launch, pixels: int, taken: int, columns: int
    ) -> tuple[float, float, float]:
        """copies, chain and work of a depthwise chunk in front of a product with so many columns"""
        warps = launch.threads // 32
        copies = math.ceil(taken * 4 / launch.threads) + math.ceil(columns * 4 / launch.threads)
        return copies, 3.0 * cost["depthwise_cycles"], 3.0 * cost["depthwise_instructions"] * min(warps, pixels / 8)

    if call.op == "inverted_residual" and given["expand_weight"] is not None:
        batch, channels, height, width = shape("x")
        hidden, co = shape("depthwise_weight")[0], shape("project_weight")[0]
        stride, dilation = given["stride"][0], given["dilation"][0]
        launch = launches[0]
        out = math.ceil(height / stride), math.ceil(width / stride)
        pixels = tile_pixels(launch, batch, *out)
        tiles = 4 if co <= 64 else 10
        cost = instance("inverted_residual_kernel", f"Fp16, {tiles}")
        depth, chunks = math.ceil(channels / CHUNK), math.ceil(math.ceil(hidden / CHUNK) / launch.cluster)
        strips = math.ceil(slots(pixels, out[0], shape("depthwise_weight")[2], stride, dilation) / 16)
        strip = cost["strip_cycles"] + (depth - 1) * cost["product_cycles"]
        of_strip = cost["strip_instructions"] + (depth - 1) * cost["product_instructions"]
        copies = (tiles * 16 + depth * CHUNK) * 4 / 256
        chain = math.ceil(strips / 8) * strip + 3 * cost["depthwise_cycles"]
        work = strips * of_strip + 3 * cost["depthwise_instructions"] * min(8, pixels / 8)
        return [
            Prediction(name, "inverted_residual", launch, chunks, *_block(cost, launch, chunks, copies, chain, work))
        ]
    if call.op == "upsample_argmax":
        batch, classes, height, width = shape("logits")
        launch = launches[0]
        staged = launch.shared > 0
        cost = next(
            v
            for k, v in table.items()
            if k[0] == "upsample_argmax_kernel" and ("true" in k[1]) == staged and "int" in k[1]
        )
        # cycles and instructions of a class, and of a source row with the classes that a thread resizes of it: read off
        # the loops, which the table has no columns for
        rows_of = math.ceil(classes / 8)
        latency, instructions = (37.0, 10.5) if staged else (120.0, 29.0)
        latency, instructions = (
            latency * classes + cost["loop_cycles"],
            instructions * classes + cost["loop_instructions"],
        )
        if staged:
            latency, instructions = latency + 4 * (300 + 15 * rows_of), instructions + 4 * (30 + 13 * rows_of)
        tiles = math.ceil(math.ceil(given["size"][0] / 8) * math.ceil(given["size"][1] / 32) * batch / launch.blocks)
        return [Prediction(name, call.op, launch, tiles, tiles * latency + 1000, tiles * 8 * instructions / 4)]
    rows: list[Prediction] = []
    if call.op == "daspp":
        batch, channels, height, width = shape("x")
        filters = shape("pool_weight")[0]
        for index, launch in enumerate(launches[:-1]):
            pixels = tile_pixels(launch, batch, height, width)
            cost = instance("separable_conv2d_kernel", "Fp16, 12, PlainInput<Half>")
            chunks = math.ceil(math.ceil(channels / CHUNK) / launch.cluster)
            taken = max(slots(pixels, height, 3, 1, rate) for rate in given["rates"])
            rows.append(
                Prediction(
                    f"{name}, first {index}", "separable_conv2d", launch, chunks,
                    *_block(cost, launch, chunks, *moved_by(cost, launch, pixels, taken, 96)),
                )
            )  # fmt: skip
        launch = launches[-1]
        pixels = tile_pixels(launch, batch, height, width)
        cost = instance("separable_conv2d_kernel", "Fp16, 12, PlainInput<Half>")
        maps = math.ceil((len(given["rates"]) + (given["point_weight"] is not None)) / launch.cluster)
        chunks = maps * 2 * math.ceil(filters / CHUNK)
        if given["direct_weight"] is not None:
            chunks += math.ceil(math.ceil(channels / CHUNK) / launch.cluster)
        moved = moved_by(cost, launch, pixels, slots(pixels, height, 3, 1, 1), 96)
        rows.append(Prediction(f"{name}, second", call.op, launch, chunks, *_block(cost, launch, chunks, *moved)))
        return rows
    kernel = (
        "separable_conv2d_classifier_kernel" if call.op == "separable_conv2d_classifier" else "separable_conv2d_kernel"
    )
    source = "skip" if call.op == "upsample_concat_separable_conv2d" else "x"
    batch, _, height, width = shape(source)
    weight = shape("depthwise_weight")
    point = "project_weight" if call.op == "inverted_residual" else "pointwise_weight"
    columns = shape(point)[0]
    tiles = 4 if columns <= 32 else 12
    stride, dilation = given["stride"][0], given["dilation"][0]
    out = math.ceil(height / stride), math.ceil(width / stride)
    launch = launches[0]
    pixels = tile_pixels(launch, batch, *out)
    text = f"Fp16, {tiles}"
    if kernel == "separable_conv2d_kernel":
        text += f", {'UpsampledInput' if source == 'skip' else 'PlainInput'}<Half>"
    cost = instance(kernel, text)
    chunks = math.ceil(math.ceil(weight[0] / CHUNK) / launch.cluster)
    moved = moved_by(cost, launch, pixels, slots(pixels, out[0], weight[2], stride, dilation), tiles * 8)
    return [Prediction(name, call.op, launch, chunks, *_block(cost, launch, chunks, *moved))]


def _tensor(value: Any) -> Any:
    if isinstance(value, shapes.Spec):
        tensor = torch.empty(value.shape, dtype=value.dtype or torch.float16)
        return (
            tensor.contiguous(memory_format=torch.channels_last)
            if tensor.dim() == 4 and tensor.shape[2] > 1
            else tensor
        )
    return [_tensor(item) for item in value] if isinstance(value, tuple) else value


# ops that have no CUDA C++ kernel; their time is among OTHERS
_LEFT_OUT = ("preprocess",)


def predict(network: str, size: tuple[int, int], batch: int = 1) -> list[Prediction]:
    """The launches from image to labels in float16, in the order they are made."""
    from liteseg_kernels import _dispatch
    from tests.emulator import build

    if reason := build.load():
        raise RuntimeError(f"predict_gpu: emulator: expected one to plan the launches with, got none: {reason}")
    controls, table = build.controls(), costs()
    rows: list[Prediction] = []
    controls.configure(max_shared=SHARED, multiprocessors=MULTIPROCESSORS, cluster_blocks=CLUSTER_BLOCKS, plan=True)
    try:
        for layer in shapes.inference(network, size):
            call = layer.call.batch(batch)
            if call.op in _LEFT_OUT:
                continue
            controls.planned()
            values = [_tensor(value) for _, value in call.arguments]
            _dispatch.run_on("cuda", call.op, *values)
            launches = [Launch(*launch) for launch in controls.planned()]
            found = predict_call(layer.layer, call, launches, table)
            rows += found * layer.count
    finally:
        controls.configure()
    return rows


def table_of(rows: Sequence[Prediction], size: tuple[int, int], batch: int) -> str:
    grows = batch * math.prod(size) / (360 * 640)
    others = {
        name: us * max(1.0, grows if name in ("preprocess", "stem", "last 1x1") else 1.0) for name, us in OTHERS.items()
    }
    lines = ["| launch | kernel | blocks | cluster | chunks | predicted us |", "|---|---|---|---|---|---|"]
    for row in rows:
        counted = f"{row.launch.blocks} | {row.launch.cluster} | {row.chunks}"
        lines.append(f"| {row.name} | {row.kernel} | {counted} | {row.microseconds:.1f} |")
    lines += [f"| {name} | not ours, assumed | | | | {us:.1f} |" for name, us in others.items()]
    total = sum(row.microseconds for row in rows) + sum(others.values())
    lines.append(f"| **sum, predicted** | | | | | **{total:.0f}** |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict_gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--network", default="liteseg_mobilenetv2", choices=shapes.NETWORKS)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args(arguments)
    size = options.size[0], options.size[1]
    rows = predict(options.network, size, options.batch)
    print(f"{options.network}, {size[0]}x{size[1]}, batch {options.batch}, float16, H100: *predicted*, not measured\n")
    print(table_of(rows, size, options.batch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
