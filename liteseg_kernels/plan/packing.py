"""The words of a program and the packed weights that they point to, for float32 and bfloat16 kernels."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contract import activation, constant

_ACTIVATIONS: tuple[str | None, ...] = (None, "relu", "relu6")


class Unplannable(Exception):
    """A network that no plan covers; its text says which part."""


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def whole_vectors(values: int) -> int:
    """Values with room for a whole vector of any instruction set."""
    return round_up(values, constant("packing.vector"))


def activation_word(name: str | None) -> int:
    if name not in _ACTIVATIONS:
        raise Unplannable(f"activation {name!r}")
    return activation(name)


def float_word(value: float) -> int:
    """The bits of a float32."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def sloped_activation_words(options: dict[str, Any]) -> tuple[int, int]:
    """The words of an activation that may be leaky: its number and the bits of its slope as a float."""
    slope = float_word(options["negative_slope"])
    if options["activation"] == "leaky_relu":
        return activation("leaky_relu"), slope
    return activation_word(options["activation"]), slope


def pack(kind: str, dims: Sequence[int], plain: Tensor, *, bf16: bool) -> Tensor:
    """A weight as the kernels of the instruction set in use read it; its floats are words of two bf16 where they read
    those. csrc/engine/plan/weights.h says what kinds and dims there are."""
    plain = plain.detach().float().contiguous()
    return torch.ops.liteseg_cpu.pack_weight(plain, constant(f"weight.{kind}"), _all_dims(dims), bf16)


def _all_dims(dims: Sequence[int]) -> list[int]:
    """Those that a kind does not have are 1."""
    return [*dims, *[1] * (constant("weight.dims") - len(dims))]


class Writer:
    """Collects the words of a program and the packed weights they point to."""

    def __init__(self, panel: int, kind: str = "plan", dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the kernels that read the weights, float32 or bfloat16."""
        self.panel = panel
        self.dtype = dtype
        self._kind = kind
        self.words: list[int] = []
        self._pieces: list[Tensor] = []
        self._floats = 0

    def add(self, *words: int) -> None:
        self.words += [int(word) for word in words]

    def layer(self, name: str, *words: int) -> None:
        self.add(constant(f"{self._kind}.{name}"), *words)

    def _weight(self, kind: str, dims: Sequence[int], plain: Tensor) -> None:
        """A weight of a kind of csrc/engine/plan/weights.h, its values in that kind's order."""
        self.add(self._floats)
        packed = pack(kind, dims, plain, bf16=self.dtype == torch.bfloat16)
        self._pieces.append(packed)
        self._floats += packed.numel()

    def matrix(self, weight: Tensor) -> None:
        """[N, K] or [N, K, h, w], a product that sums over taps, channels innermost."""
        rows = weight[:, None] if weight.dim() == 2 else weight.movedim(1, -1).flatten(2)
        self._weight("matrix", rows.shape, rows)

    def winograd(self, weight: Tensor, output: int) -> None:
        """[N, C, 3, 3] for tiles of `output` x `output` pixels."""
        self._weight("winograd", (*weight.shape[:2], output), weight.movedim(1, -1))

    def bias(self, bias: Tensor | None, channels: int) -> None:
        self._weight("vector", (channels,), torch.zeros(channels) if bias is None else bias)

    def grouped(self, weight: Tensor, bias: Tensor, groups: int) -> None:
        """[N, K / groups, 1, 1] and [N]: the matrices of all groups, then their biases."""
        columns = weight.shape[0] // groups
        self._weight("grouped_matrix", (groups, columns, weight.shape[1]), weight)
        self._weight("grouped_vector", (groups, columns), bias)

    def depthwise(self, weight: Tensor, channels: int | None = None) -> None:
        """[C, 1, kh, kw], with zeros up to `channels`."""
        taps = weight.flatten(1)
        self._weight("depthwise", (*taps.shape, channels or len(taps)), taps)

    def inner_depthwise(self, weight: Tensor) -> None:
        """[C, 1, 3, 3] of a map that the layer itself makes."""
        self._weight("inner_depthwise", (len(weight),), weight)

    def byte_matrix(self, weight: Tensor) -> None:
        """int8 [N, K], a product of bytes."""
        self._weight("byte_matrix", weight.shape, weight)

    def float_matrix(self, weight: Tensor) -> None:
        """[N, K], a product of floats in any plan."""
        self._weight("float_matrix", weight.shape, weight)

    def integers(self, values: Tensor) -> None:
        """int32 [N] below 2^24, one a column."""
        self._weight("integers", (len(values),), values)

    def byte_depthwise(self, weight: Tensor) -> None:
        """int8 [C, 9], a 3x3 filter a channel."""
        self._weight("byte_depthwise", (len(weight),), weight)

    def lanes(self, kind: str, values: Tensor) -> None:
        """[C] of the kind lane_integers or lane_vector, beside a byte_depthwise."""
        self._weight(kind, (len(values),), values)

    def packed(self) -> Tensor:
        """All weights; the writer keeps none of them, so that they are in memory only once."""
        out = torch.empty(self._floats)
        at = 0
        while self._pieces:
            piece = self._pieces.pop(0)
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out


@dataclass(frozen=True)
class PlainWeight:
    """A weight as a network file keeps it: the place of its word in the program, and what `Writer._weight` is given."""

    place: int
    kind: str
    dims: list[int]
    values: Tensor


class PlainWriter(Writer):
    """Collects the weights as they are, for whoever packs them later and sets their words."""

    def __init__(self) -> None:
        super().__init__(panel=0)
        self.weights: list[PlainWeight] = []

    def _weight(self, kind: str, dims: Sequence[int], plain: Tensor) -> None:
        self.weights.append(PlainWeight(len(self.words), kind, _all_dims(dims), plain.detach().float()))
        self.add(0)
