"""The op calls that the networks make, read off the networks themselves: nothing here is typed by hand.

Each network runs folded on meta tensors, from the uint8 picture to the label map, while a dispatch mode writes down
every op of this library with the shapes of its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import liteseg
import liteseg_kernels as lk

NETWORKS = ("liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19")
# arguments with one entry an image; the others are weights
MAPS = ("x", "skip", "residual", "image", "logits", "target")
CLASSES = 19


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape of a tensor argument. `dtype` is None for the floating dtype under test."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


def is_map(name: str, value: Any) -> bool:
    """Whether an argument (a `Spec` or a tensor) has one entry an image. Some ops have a flag called residual."""
    return name in MAPS and isinstance(value, (Spec, Tensor))


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an op: its arguments by name, tensors as `Spec`, lists as tuples."""

    op: str
    arguments: tuple[tuple[str, Any], ...]

    def batch(self, n: int) -> Call:
        """The same call with n images."""

        def change(name: str, value: Any) -> Any:
            return dataclasses.replace(value, shape=(n, *value.shape[1:])) if is_map(name, value) else value

        return Call(self.op, tuple((name, change(name, value)) for name, value in self.arguments))

    def geometry(self) -> tuple[Any, ...]:
        """What is left without the sizes: calls with equal geometry take the same paths through a kernel."""

        def without_sizes(value: Any) -> Any:
            if isinstance(value, Spec):
                return len(value.shape), value.shape[2:] if value.shape[2:] in ((1, 1), (3, 3), (5, 5)) else None
            return tuple(map(without_sizes, value)) if isinstance(value, tuple) else value

        sizes = ("size",)
        return self.op, *((name, without_sizes(value)) for name, value in self.arguments if name not in sizes)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A call with the place it was made from; equal calls of one network are listed once, `count` says how many."""

    network: str
    layer: str
    size: tuple[int, int]
    call: Call
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.network.removeprefix('liteseg_')}/{self.layer} {self.size[0]}x{self.size[1]}"


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape), None if value.is_floating_point() else value.dtype)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.calls: list[tuple[str, Call]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "liteseg":
            names = [argument.name for argument in func._schema.arguments]
            given = tuple(zip(names, map(_frozen, args), strict=True))
            self.calls.append((self._place(), Call(func._schema.name.split("::")[1], given)))
        return func(*args, **(kwargs or {}))

    def _place(self) -> str:
        """Name of the innermost module called, read off the stack: hooks would keep blocks from being fused."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "_call_impl" and id(frame.f_locals["self"]) in self.names:
                return self.names[id(frame.f_locals["self"])]
            frame = frame.f_back
        return ""


@functools.cache
def _folded(network: str) -> nn.Module:
    with torch.device("meta"):
        return lk.fuse(liteseg.create_model(network, num_classes=CLASSES))


def _layers(network: str, size: tuple[int, int], run: Callable[[nn.Module], None]) -> list[Layer]:
    # a copy, for `run` may change its mode
    model = lk.fuse(_folded(network))
    recorder = _Recorder(model)
    with recorder:
        run(model)
    found: dict[Call, Layer] = {}
    for place, call in recorder.calls:
        known = found.get(call)
        layer = Layer(network, place or call.op, size, call)
        found[call] = layer if known is None else dataclasses.replace(known, count=known.count + 1)
    return list(found.values())


@functools.cache
def inference(network: str, size: tuple[int, int]) -> tuple[Layer, ...]:
    """Calls from a uint8 picture of `size` to its labels, batch 1, in the order they are first made."""

    def run(model: nn.Module) -> None:
        with torch.inference_mode():
            picture = torch.empty(1, *size, 3, dtype=torch.uint8, device="meta")
            lk.runtime.labels(model, lk.functional.preprocess(picture), size)

    return tuple(_layers(network, size, run))


@functools.cache
def training(network: str, size: tuple[int, int]) -> tuple[Layer, ...]:
    """Calls of a training step's forward pass (those that run in training mode), batch 1."""

    def run(model: Any) -> None:
        model.train()
        picture = torch.empty(1, 3, *size, device="meta")
        label = torch.empty(1, *size, dtype=torch.uint8, device="meta")
        lk.functional.upsample_cross_entropy(model.low_resolution_logits(picture), label)

    return tuple(_layers(network, size, run))


def one_of_each(
    networks: tuple[str, ...] = NETWORKS, size: tuple[int, int] = (64, 96), *, geometry: bool = True
) -> Iterator[Layer]:
    """A small set that reaches every op: the first call of each geometry (or only of each op) over all networks."""
    seen = set()
    for network in networks:
        for layer in (*inference(network, size), *training(network, size)):
            key = layer.call.geometry() if geometry else layer.call.op
            if key not in seen:
                seen.add(key)
                yield layer
