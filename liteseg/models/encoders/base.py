"""What an encoder has to say of itself, and what it gets for that."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from liteseg_kernels.plan import Program


class Encoder(nn.Module):
    """A backbone: float [N, in_channels, H, W] -> (low-level feature, encoded feature), the latter at `output_stride`.

    A subclass states the class attributes below. One whose constructor makes two `nn.Sequential`, `low` (up to the
    low-level feature) and `high` (the rest), is complete, its part of the plan included; any other one defines
    `forward`, and where its modules have a `lower` of their own `lower` as well. Without it the network runs without a
    plan, and `liteseg_kernels.explain` says so.

    Attributes:
        low_level_channels: of the low-level feature, which the decoder joins.
        out_channels: of the encoded feature.
        output_strides: that the constructor takes, the published one first.
        decoder_channels: to which the decoder reduces the low-level feature; None: as it is.
        state_prefix: the start of keys in the encoder's state dict that no other encoder's has, by which a bare state
            dict is recognised; None: it is not.
    """

    low_level_channels: int
    out_channels: int
    output_strides: ClassVar[tuple[int, ...]]
    decoder_channels: int | None = None
    state_prefix: ClassVar[str | None] = None

    low: nn.Sequential
    high: nn.Sequential

    def __init_subclass__(cls, *, reads_channels: bool = False) -> None:
        """With `reads_channels` the constructor sets those of the features, which another library's model says."""
        super().__init_subclass__()
        for attribute in ("output_strides", *(() if reads_channels else ("low_level_channels", "out_channels"))):
            if not hasattr(cls, attribute):
                raise TypeError(f"{cls.__name__}: {attribute}: expected a class attribute, got none")

    def __init__(self, output_stride: int, in_channels: int = 3) -> None:
        super().__init__()
        if output_stride not in self.output_strides:
            name = type(self).__name__
            raise ValueError(f"{name}: output_stride: expected one of {self.output_strides}, got {output_stride!r}")
        self.output_stride = output_stride
        self.in_channels = in_channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low_level = self.low(x)
        return low_level, self.high(low_level)

    def lower(self, program: Program, x: int) -> tuple[int, int]:
        """Add the encoder to a plan; the values of the low-level and the encoded feature."""
        values = []
        for part in ("low", "high"):
            for name, module in getattr(self, part).named_children():
                x = program.run(module, f"{part}.{name}", x)
            values.append(x)
        return values[0], values[1]

    def extra_repr(self) -> str:
        return f"output_stride={self.output_stride}"
