"""Blocks in int8, for inference on the CPU: what `liteseg.quantize` puts in the place of float blocks.

Inside a plan they run as kernels of bytes (csrc/engine/kernels/int8); elsewhere as their reference, which gives the
same integers, slowly. Never as the float block that they were made from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .plan import Program
from .reference import int8_inverted_residual as reference

__all__ = ["ByteGrid", "Int8InvertedResidual"]

# bytes of a weight lie in -127..127, so that a sum fits into int32 and a block's negative is one too
_MOST_WEIGHT = 127
# of a bias in steps of its sums, which leaves room in float32's 24 bits for what zero points add
_MOST_BIAS = 1 << 22
# of what sums are multiplied by: none reaches 2^31
_MOST_SCALE = 32.0
_PARTS = ("expand", "depthwise", "project")


@dataclass(frozen=True)
class ByteGrid:
    """How bytes stand for numbers: (byte - zero) * scale, with scale a float32 and zero in 0..255."""

    scale: float
    zero: int = 0

    @classmethod
    def spanning(cls, low: float, high: float) -> ByteGrid:
        """That whose 256 numbers reach from low (or 0) to high (or 0)."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(torch.tensor((high - low) / 255, dtype=torch.float32)) or 1.0
        return cls(scale, min(255, max(0, round(-low / scale))))


def _rounded_to_16_bits(value: float) -> Tensor:
    """The nearest float32 with 16 significant bits: its product with a byte is exact."""
    mantissa, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return torch.ldexp((mantissa * 65536).round() / 65536, exponent).float()


class Int8InvertedResidual(nn.Module):
    """MobileNetV2's block with int8 weights, one scale a channel, between maps of bytes.

    Takes and gives float32 or bfloat16 [N, C, H, W] on the CPU, on the grids of its input and output. Eval mode only.
    Weights, scales and zero points are buffers: they are part of the `state_dict` and keep their dtypes.
    """

    # `.to(dtype)` is not for scales
    keeps_dtypes = True

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, *, stride: int, dilation: int, residual: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.hidden, self.out_channels = in_channels, hidden, out_channels
        self.stride, self.dilation, self.residual = stride, dilation, residual
        shapes = ((hidden, in_channels, 1, 1), (hidden, 1, 3, 3), (out_channels, hidden, 1, 1))
        for name, shape in zip(_PARTS, shapes, strict=True):
            self.register_buffer(f"{name}_weight", torch.zeros(shape, dtype=torch.int8))
            self.register_buffer(f"{name}_weight_scale", torch.ones(shape[0]))
            self.register_buffer(f"{name}_bias", torch.zeros(shape[0], dtype=torch.int32))
        for name in ("in", *_PARTS):
            self.register_buffer(f"{name}_scale", torch.ones(()))
        for name in ("in", "project"):
            self.register_buffer(f"{name}_zero", torch.zeros((), dtype=torch.int32))
        self.eval()

    @classmethod
    def of(
        cls,
        weights: dict[str, Tensor | None],
        *,
        stride: int,
        dilation: int,
        residual: bool,
        grids: tuple[ByteGrid, ByteGrid, ByteGrid, ByteGrid],
        means: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Int8InvertedResidual:
        """The block of folded float weights, by the names of `functional.inverted_residual`'s arguments.

        Args:
            grids: of the input, the two hidden maps (their zero is 0) and the output.
            means: of each channel of the input and of the two hidden maps; what rounding the weights moves the sums by
                for them goes into the biases.

        Raises:
            ValueError: weights that are not finite, or grids that a sum cannot be scaled between.
        """
        shapes = {name: weights[f"{name}_weight"] for name in _PARTS}
        tensors = {name: weight for name, weight in shapes.items() if weight is not None}
        if len(tensors) < len(_PARTS):
            raise ValueError("int8 inverted residual: expand_weight: expected one, got None")
        hidden, in_channels = tensors["expand"].shape[:2]
        block = cls(
            in_channels, hidden, tensors["project"].shape[0], stride=stride, dilation=dilation, residual=residual
        )
        for index, (name, weight) in enumerate(tensors.items()):
            mean = None if means is None else means[index]
            block._set(name, weight.double(), weights[f"{name}_bias"], grids[index], grids[index + 1], mean)
        block.in_scale.fill_(grids[0].scale)
        block.in_zero.fill_(grids[0].zero)
        block.project_zero.fill_(grids[3].zero)
        return block

    def _set(
        self, name: str, weight: Tensor, bias: Tensor | None, before: ByteGrid, after: ByteGrid, mean: Tensor | None
    ) -> None:
        bias = torch.zeros(len(weight)).double() if bias is None else bias.double()
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"int8 inverted residual: {name}: expected finite weights, got NaN or infinity")
        rows = weight.flatten(1)
        scale = torch.maximum(rows.abs().amax(1) / _MOST_WEIGHT, bias.abs() / (before.scale * _MOST_BIAS))
        # a channel of zeros has any scale
        scale = torch.where(scale > 0, scale, torch.ones_like(scale)).clamp_min(2.0**-100).float()
        steps = (rows / scale.double()[:, None]).round().clamp(-_MOST_WEIGHT, _MOST_WEIGHT)
        if mean is not None:
            lost = (rows - steps * scale.double()[:, None]).view_as(weight)
            # of a depthwise convolution each channel has its own
            inputs = mean.double().view((-1, 1, 1, 1) if name == "depthwise" else (1, -1, 1, 1))
            bias = bias + (lost * inputs).flatten(1).sum(1)
        whole = (bias / (before.scale * scale.double())).round().clamp(-_MOST_BIAS, _MOST_BIAS)
        multiplier = before.scale * scale.double() / after.scale
        if not bool((multiplier * steps.abs().amax(1).clamp_max(1) <= _MOST_SCALE).all()):
            raise ValueError(
                f"int8 inverted residual: {name}: expected outputs of a range like the inputs', got steps of "
                f"{after.scale:.1e} after {before.scale:.1e}"
            )
        # of a channel without weights and bias
        scale = torch.where(multiplier > _MOST_SCALE, torch.zeros_like(scale), scale)
        for key, value in (("weight", steps.view_as(weight)), ("weight_scale", scale), ("bias", whole)):
            getattr(self, f"{name}_{key}").copy_(value)
        getattr(self, f"{name}_scale").fill_(after.scale)

    @property
    def in_grid(self) -> ByteGrid:
        return ByteGrid(float(self.in_scale), int(self.in_zero))

    @property
    def out_grid(self) -> ByteGrid:
        return ByteGrid(float(self.project_scale), int(self.project_zero))

    def _part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias, and what sums are multiplied by for steps of the result."""
        before = self.get_buffer("in_scale" if name == "expand" else f"{_PARTS[_PARTS.index(name) - 1]}_scale")
        scale = self.get_buffer(f"{name}_weight_scale").double() * before.double()
        scale = scale / self.get_buffer(f"{name}_scale").double()
        return self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"), scale.float()

    def _residual_scale(self) -> Tensor | None:
        return _rounded_to_16_bits(float(self.in_scale) / float(self.project_scale)) if self.residual else None

    def lower(self, program: Program, x: int) -> int:
        """Add this block to a plan (`plan.Program`)."""
        weights: dict[str, Any] = {}
        for name in _PARTS:
            for key, value in zip(("weight", "bias", "scale"), self._part(name), strict=True):
                weights[f"{name}_{key}"] = value
        residual = self._residual_scale()
        return program.int8_inverted_residual(
            x,
            weights,
            stride=self.stride,
            dilation=self.dilation,
            residual_scale=None if residual is None else float(residual),
            grids=(self.in_grid, self.out_grid),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("Int8InvertedResidual: expected eval mode, got training mode: int8 weights do not train")
        if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
            raise TypeError(
                f"Int8InvertedResidual: x: expected float32 or bfloat16 on the CPU, got {x.dtype} on {x.device.type}"
            )
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"Int8InvertedResidual: x: expected [N, {self.in_channels}, H, W], got {list(x.shape)}")
        out = reference.forward(
            reference.quantise(x, self.in_scale, int(self.in_zero)),
            *(self._part(name) for name in _PARTS),
            stride=self.stride,
            dilation=self.dilation,
            in_zero=int(self.in_zero),
            out_zero=int(self.project_zero),
            residual_scale=self._residual_scale(),
        )
        return reference.dequantise(out, self.project_scale, int(self.project_zero), x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8InvertedResidual:
        kept = {name: buffer.dtype for name, buffer in self.named_buffers()}
        own = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, dtype in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != dtype:
                # the values from before the conversion, where that has moved them
                setattr(self, name, own[name].to(moved.device))
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.hidden}, {self.out_channels}, stride={self.stride}, dilation={self.dilation}, "
            f"residual={self.residual}"
        )
