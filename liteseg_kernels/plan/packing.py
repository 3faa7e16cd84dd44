"""The words of a program and the packed weights that they point to, for float32 and bfloat16 kernels."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import Tensor, nn

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


def sloped_activation_words(options: dict[str, Any]) -> tuple[int, int]:
    """The words of an activation that may be leaky: its number and the bits of its slope as a float."""
    slope = struct.unpack("<I", struct.pack("<f", options["negative_slope"]))[0]
    if options["activation"] == "leaky_relu":
        return activation("leaky_relu"), slope
    return activation_word(options["activation"]), slope


# interpolation points of Winograd's method by the side of a tile of outputs, besides the one at infinity; the kernels
# have the same ones. 3/4 and 3/2 halve the error of the usual 1 and 2
WINOGRAD_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}


def _winograd_transform(output: int) -> Tensor:
    """[output + 2, 3] in float64: the values of a filter, as a polynomial, at the points, and its last coefficient."""
    points = WINOGRAD_POINTS[output]
    rows = []
    for point in points:
        scale = math.prod(point - other for other in points if other != point)
        rows.append([1 / scale, point / scale, point**2 / scale])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


class Writer:
    """Collects the words of a program and the packed weights they point to."""

    # the name of a plan's first word
    version = "version.plan"

    def __init__(self, panel: int, kind: str = "plan") -> None:
        self.panel = panel
        self._kind = kind
        self.words: list[int] = []
        self._pieces: list[Tensor] = []
        self._floats = 0

    def add(self, *words: int) -> None:
        self.words += [int(word) for word in words]

    def layer(self, name: str, *words: int) -> None:
        self.add(constant(f"{self._kind}.{name}"), *words)

    def _weight(self, values: Tensor) -> None:
        flat = values.reshape(-1)
        self.add(self._floats)
        room = whole_vectors(flat.numel())
        self._pieces.append(nn.functional.pad(flat, (0, room - flat.numel())))
        self._floats += room

    def matrix(self, weight: Tensor) -> None:
        """[N, K] or [N, K, h, w] as panels [N / panel][rows of taps, channels innermost][panel]."""
        rows = weight.float().movedim(1, -1).flatten(1)
        rows = nn.functional.pad(rows, (0, 0, 0, round_up(rows.shape[0], self.panel) - rows.shape[0]))
        self._weight(rows.unflatten(0, (-1, self.panel)).transpose(1, 2))

    def winograd(self, weight: Tensor, output: int) -> None:
        """[N, C, 3, 3] transformed for tiles of `output` x `output` pixels: [N / panel][(output + 2)^2][C][panel]."""
        transform = _winograd_transform(output)
        both = torch.kron(transform, transform)
        weight = nn.functional.pad(weight, (0,) * 7 + (round_up(weight.shape[0], self.panel) - weight.shape[0],))
        # in float64, a panel at a time
        panels = (both @ rows.double().permute(2, 3, 1, 0).reshape(9, -1) for rows in weight.split(self.panel))
        self._weight(torch.cat([panel.float().flatten() for panel in panels]))

    def bias(self, bias: Tensor | None, channels: int) -> None:
        padded = torch.zeros(round_up(channels, self.panel))
        if bias is not None:
            padded[:channels] = bias
        self._weight(padded)

    def grouped(self, weight: Tensor, bias: Tensor, groups: int) -> None:
        """[N, K / groups, 1, 1] and [N]: the matrices of all groups, in panels of three vectors and what is left, then
        their biases."""
        columns, vector = weight.shape[0] // groups, self.panel // 2
        short = round_up(columns, vector) - columns
        rows = nn.functional.pad(weight.float().flatten(1).unflatten(0, (groups, columns)), (0, 0, 0, short))
        self._weight(
            torch.cat(
                [
                    part.transpose(1, 2).flatten(1)
                    for part in rows.split(constant("packing.grouped_vectors") * vector, 1)
                ],
                1,
            )
        )
        self._weight(nn.functional.pad(bias.float().unflatten(0, (groups, columns)), (0, short)))

    def depthwise(self, weight: Tensor, channels: int | None = None) -> None:
        """[C, 1, 3, 3] as [9][C], with zeros up to `channels`."""
        taps = weight.float().flatten(1).t()
        self._weight(nn.functional.pad(taps, (0, (channels or taps.shape[1]) - taps.shape[1])))

    def inner_depthwise(self, weight: Tensor) -> None:
        """The same for a map that the layer itself makes, in the kernel's own layout."""
        self.depthwise(weight)

    def packed(self) -> Tensor:
        """All weights; the writer keeps none of them, so that they are in memory only once."""
        out = torch.empty(self._floats)
        at = 0
        while self._pieces:
            piece = self._pieces.pop(0)
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out


class Bf16Writer(Writer):
    """Matrices as words of two neighbouring rows, each word in the place of a float."""

    version = "version.bf16_plan"

    def matrix(self, weight: Tensor) -> None:
        """[N, K] or [N, K, h, w] as panels [N / panel][h stretches of taps and channels, made even][panel] of words."""
        rows = weight.float()
        rows = rows[:, None] if rows.dim() == 2 else rows.movedim(1, -1).flatten(2)
        columns = round_up(rows.shape[0], self.panel) - rows.shape[0]
        rows = nn.functional.pad(rows, (0, rows.shape[2] % 2, 0, 0, 0, columns))
        words = rows.bfloat16().flatten().view(torch.float32)
        count = rows.shape[1] * rows.shape[2] // 2
        self._weight(words.view(rows.shape[0] // self.panel, self.panel, count).transpose(1, 2))

    def inner_depthwise(self, weight: Tensor) -> None:
        """[C, 1, 3, 3] as sets of pair rows [8][3 columns][C up to whole vectors] of words: the taps that the even and
        the odd row of a pair meet, in the order of TapSet in csrc/engine/blocks/pairs.h."""
        channels = weight.shape[0]
        rows = weight.float().flatten(1).t().unflatten(0, (3, 3))
        rows = nn.functional.pad(rows, (0, whole_vectors(channels) - channels, 0, 0, 0, 1))
        # the fourth row is zero: no tap
        even_and_odd = [(3, 0), (1, 2), (0, 1), (2, 3), (0, 3), (1, 3), (3, 1), (3, 2)]
        sets = torch.stack([torch.stack((rows[even], rows[odd]), -1) for even, odd in even_and_odd])
        self._weight(sets.bfloat16().view(torch.float32))


WRITERS: dict[torch.dtype, type[Writer]] = {torch.float32: Writer, torch.bfloat16: Bf16Writer}
