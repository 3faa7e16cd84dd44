"""Blocks in int8, for inference on the CPU: what `liteseg.quantize` puts in the place of float blocks.

Inside a plan they run as kernels of bytes (csrc/engine/kernels/int8); elsewhere as their reference, which gives the
same integers, slowly. Never as the float block that they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .plan import Program
from .reference import int8 as reference

__all__ = ["ByteGrid", "Int8DASPP", "Int8InvertedResidual", "Int8Module", "Int8Pointwise", "Int8SeparableConv2d"]

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


def _quantised(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    before: float,
    after: float | None,
    mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """int8 weight, scale of each channel and int32 bias of a float convolution.

    Args:
        before, after: scales of its input's and of its output's bytes; None for an output that is numbers.
        mean: of each channel of the input; what rounding the weights moves the sums by for it goes into the bias.
    """
    weight = weight.double()
    bias = torch.zeros(len(weight)).double() if bias is None else bias.double()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"int8: {name}: expected finite weights, got NaN or infinity")
    rows = weight.flatten(1)
    scale = torch.maximum(rows.abs().amax(1) / _MOST_WEIGHT, bias.abs() / (before * _MOST_BIAS))
    # a channel of zeros has any scale
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).clamp_min(2.0**-100).float()
    steps = (rows / scale.double()[:, None]).round().clamp(-_MOST_WEIGHT, _MOST_WEIGHT)
    if mean is not None:
        lost = (rows - steps * scale.double()[:, None]).view_as(weight)
        # of a depthwise convolution each channel has its own
        inputs = mean.double().view((-1, 1, 1, 1) if weight.shape[1] == 1 < len(mean) else (1, -1, 1, 1))
        bias = bias + (lost * inputs).flatten(1).sum(1)
    whole = (bias / (before * scale.double())).round().clamp(-_MOST_BIAS, _MOST_BIAS)
    if after is not None:
        multiplier = before * scale.double() / after
        used = (steps != 0).any(1) | (whole != 0)
        if bool((multiplier[used] > _MOST_SCALE).any()):
            raise ValueError(
                f"int8: {name}: expected outputs of a range like the inputs', got steps of {after:.1e} after "
                f"{before:.1e}"
            )
        scale = torch.where(used, scale, torch.zeros_like(scale))
    return steps.view_as(weight).to(torch.int8), scale, whole.to(torch.int32)


def _start(channels: int, grid: ByteGrid) -> Tensor:
    """Bias of a convolution without one: what zero is among the result's bytes, it is from the start of the sums."""
    return torch.full((channels,), grid.zero * grid.scale, dtype=torch.float64)


class Int8Module(nn.Module):
    """Base of the modules in int8: float32 or bfloat16 [N, C, H, W] on the CPU, in eval mode only, in and out, on the
    grids of their bytes. Weights, scales and zero points are buffers: they are part of the `state_dict` and keep their
    dtypes."""

    # `.to(dtype)` is not for scales
    keeps_dtypes = True

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.eval()

    def _convolution(self, name: str, shape: Sequence[int]) -> None:
        """Buffers of an int8 convolution."""
        self.register_buffer(f"{name}_weight", torch.zeros(tuple(shape), dtype=torch.int8))
        self.register_buffer(f"{name}_weight_scale", torch.ones(shape[0]))
        self.register_buffer(f"{name}_bias", torch.zeros(shape[0], dtype=torch.int32))

    def _set(self, name: str, *values: Tensor) -> None:
        for key, value in zip(("weight", "weight_scale", "bias"), values, strict=True):
            self.get_buffer(f"{name}_{key}").copy_(value)

    def _add_grid(self, name: str) -> None:
        self.register_buffer(f"{name}_scale", torch.ones(()))
        self.register_buffer(f"{name}_zero", torch.zeros((), dtype=torch.int32))

    def _set_grid(self, name: str, grid: ByteGrid) -> None:
        self.get_buffer(f"{name}_scale").fill_(grid.scale)
        self.get_buffer(f"{name}_zero").fill_(grid.zero)

    def grid(self, name: str) -> ByteGrid:
        """Of the map `name`: "in", "out" or one in between."""
        return ByteGrid(float(self.get_buffer(f"{name}_scale")), int(self.get_buffer(f"{name}_zero")))

    def _part(self, name: str, before: str, after: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias, and what sums are multiplied by for steps of the map `after`, or for numbers."""
        scale = self.get_buffer(f"{name}_weight_scale").double() * self.get_buffer(f"{before}_scale").double()
        if after is not None:
            scale = scale / self.get_buffer(f"{after}_scale").double()
        return self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"), scale.float()

    def bytes(self, x: Tensor) -> Tensor:
        """The bytes of the output for those of the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        own = type(self).__name__
        if self.training:
            raise RuntimeError(f"{own}: expected eval mode, got training mode: int8 weights do not train")
        if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
            raise TypeError(f"{own}: x: expected float32 or bfloat16 on the CPU, got {x.dtype} on {x.device.type}")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"{own}: x: expected [N, {self.in_channels}, H, W], got {list(x.shape)}")
        grid = self.grid("out")
        out = self.bytes(reference.quantise(x, self.get_buffer("in_scale"), self.grid("in").zero))
        return reference.dequantise(out, self.get_buffer("out_scale"), grid.zero, x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Module:
        own = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, before in own.items():
            moved = self.get_buffer(name)
            if moved.dtype != before.dtype:
                # the values from before the conversion, where that has moved them
                setattr(self, name, before.to(moved.device))
        return self


class Int8InvertedResidual(Int8Module):
    """MobileNetV2's block with int8 weights, one scale a channel, between maps of bytes."""

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, *, stride: int, dilation: int, residual: bool
    ) -> None:
        super().__init__(in_channels)
        self.hidden, self.out_channels = hidden, out_channels
        self.stride, self.dilation, self.residual = stride, dilation, residual
        self._convolution("expand", (hidden, in_channels, 1, 1))
        self._convolution("depthwise", (hidden, 1, 3, 3))
        self._convolution("project", (out_channels, hidden, 1, 1))
        for name in ("in", "expand", "depthwise", "out"):
            self._add_grid(name)

    @classmethod
    def of(
        cls,
        weights: dict[str, Tensor | None],
        *,
        stride: int,
        dilation: int,
        residual: bool,
        grids: Sequence[ByteGrid],
        means: Sequence[Tensor | None] = (None, None, None),
    ) -> Int8InvertedResidual:
        """The block of folded float weights, by the names of `functional.inverted_residual`'s arguments.

        Args:
            grids: of the input, the two hidden maps (their zero is 0) and the output.
            means: of each channel of the input and of the two hidden maps, to correct the biases for.

        Raises:
            ValueError: weights that are not finite, or grids that a sum cannot be scaled between.
        """
        expand, depthwise, project = (weights[f"{name}_weight"] for name in ("expand", "depthwise", "project"))
        if expand is None or depthwise is None or project is None:
            raise ValueError("int8 inverted residual: expand_weight: expected one, got None")
        hidden, in_channels = expand.shape[:2]
        block = cls(in_channels, hidden, len(project), stride=stride, dilation=dilation, residual=residual)
        parts = (("expand", expand), ("depthwise", depthwise), ("project", project))
        for index, (name, weight) in enumerate(parts):
            before, after = grids[index].scale, grids[index + 1].scale
            block._set(name, *_quantised(name, weight, weights[f"{name}_bias"], before, after, means[index]))
        for name, grid in zip(("in", "expand", "depthwise", "out"), grids, strict=True):
            block._set_grid(name, grid)
        return block

    def _parts(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        return {
            "expand": self._part("expand", "in", "expand"),
            "depthwise": self._part("depthwise", "expand", "depthwise"),
            "project": self._part("project", "depthwise", "out"),
        }

    def _residual_scale(self) -> Tensor | None:
        return _rounded_to_16_bits(self.grid("in").scale / self.grid("out").scale) if self.residual else None

    def lower(self, program: Program, x: int) -> int:
        """Add this block to a plan (`plan.Program`)."""
        weights = {
            f"{name}_{key}": value
            for name, part in self._parts().items()
            for key, value in zip(("weight", "bias", "scale"), part, strict=True)
        }
        residual = self._residual_scale()
        return program.int8_inverted_residual(
            x,
            weights,
            stride=self.stride,
            dilation=self.dilation,
            residual_scale=None if residual is None else float(residual),
            grids=(self.grid("in"), self.grid("out")),
        )

    def bytes(self, x: Tensor) -> Tensor:
        return reference.inverted_residual(
            x,
            *self._parts().values(),
            stride=self.stride,
            dilation=self.dilation,
            in_zero=self.grid("in").zero,
            out_zero=self.grid("out").zero,
            residual_scale=self._residual_scale(),
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.hidden}, {self.out_channels}, stride={self.stride}, dilation={self.dilation}, "
            f"residual={self.residual}"
        )


class Int8Pointwise(Int8Module):
    """A 1x1 convolution with ReLU or ReLU6 between maps of bytes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels)
        self.out_channels = out_channels
        self._convolution("conv", (out_channels, in_channels, 1, 1))
        for name in ("in", "out"):
            self._add_grid(name)

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor | None, *, grids: Sequence[ByteGrid], means: Sequence[Tensor | None] = (None,)
    ) -> Int8Pointwise:
        """That of [C', C, 1, 1] and [C'], on the grids of its input and output (whose zero is 0)."""
        conv = cls(weight.shape[1], len(weight))
        conv._set("conv", *_quantised("conv", weight, bias, grids[0].scale, grids[1].scale, means[0]))
        conv._set_grid("in", grids[0])
        conv._set_grid("out", grids[1])
        return conv

    def lower(self, program: Program, x: int) -> int:
        """Add this convolution to a plan (`plan.Program`)."""
        weight, bias, scale = self._part("conv", "in", "out")
        grids = (self.grid("in"), self.grid("out"))
        return program.int8_pointwise(x, {"weight": weight, "bias": bias, "scale": scale}, grids=grids)

    def bytes(self, x: Tensor) -> Tensor:
        return reference.pointwise(x, self._part("conv", "in", "out"), self.grid("in").zero)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


class Int8SeparableConv2d(Int8Module):
    """A 3x3 separable convolution with ReLU or ReLU6 behind another activation that is none below zero, between maps of
    bytes. Plans have it as the second one of a decoder."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels)
        self.out_channels = out_channels
        self._convolution("depthwise", (in_channels, 1, 3, 3))
        self._convolution("pointwise", (out_channels, in_channels, 1, 1))
        for name in ("in", "depthwise", "out"):
            self._add_grid(name)

    @classmethod
    def of(
        cls,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        bias: Tensor | None,
        *,
        grids: Sequence[ByteGrid],
        means: Sequence[Tensor | None] = (None, None),
    ) -> Int8SeparableConv2d:
        """That of weights as `functional.separable_conv2d` takes them; `grids` of the input (its zero is 0), of the map
        between and of the output (likewise), `means` of the first two."""
        conv = cls(len(depthwise_weight), len(pointwise_weight))
        first, middle, last = grids
        if first.zero or last.zero:
            raise ValueError(f"int8: x: expected the zero point 0, got {first.zero} and {last.zero}")
        zero = _start(len(depthwise_weight), middle)
        conv._set("depthwise", *_quantised("depthwise", depthwise_weight, zero, first.scale, middle.scale, means[0]))
        conv._set("pointwise", *_quantised("pointwise", pointwise_weight, bias, middle.scale, last.scale, means[1]))
        for name, grid in zip(("in", "depthwise", "out"), grids, strict=True):
            conv._set_grid(name, grid)
        return conv

    def _parts(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor], int]:
        first, second = self._part("depthwise", "in", "depthwise"), self._part("pointwise", "depthwise", "out")
        return first, second, self.grid("depthwise").zero

    def lower(self, program: Program, x: int) -> int:
        """Add this convolution to a plan (`plan.Program`)."""
        return program.int8_separable(x, *self._parts(), grids=(self.grid("in"), self.grid("out")))

    def bytes(self, x: Tensor) -> Tensor:
        return reference.separable(x, *self._parts())

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


class Int8DASPP(Int8Module):
    """The deeper pyramid between maps of bytes: its branches are in int8 up to their sums over the input channels, what
    follows (second convolutions, pooled branch and projection, a tenth of the work) is in float32."""

    def __init__(self, in_channels: int, filters: int, rates: Sequence[int]) -> None:
        super().__init__(in_channels)
        self.filters, self.rates = filters, tuple(rates)
        self._convolution("direct", (filters, in_channels, 1, 1))
        for name in ("in", "out", *(f"atrous_{i}" for i in range(len(self.rates)))):
            self._add_grid(name)
        for index in range(len(self.rates)):
            self._convolution(f"depthwise_{index}", (in_channels, 1, 3, 3))
            self._convolution(f"pointwise_{index}", (filters, in_channels, 1, 1))
            self.register_buffer(f"deep_depthwise_{index}", torch.zeros(filters, 1, 3, 3))
            self.register_buffer(f"deep_pointwise_{index}", torch.zeros(filters, filters, 1, 1))
            self.register_buffer(f"deep_bias_{index}", torch.zeros(filters))
        self.register_buffer("pool_weight", torch.zeros(filters, in_channels, 1, 1))
        self.register_buffer("pool_bias", torch.zeros(filters))
        self.register_buffer("project_weight", torch.zeros(filters, (len(self.rates) + 1) * filters, 1, 1))
        self.register_buffer("project_bias", torch.zeros(filters))

    @classmethod
    def of(
        cls,
        weights: dict[str, Tensor],
        rates: Sequence[int],
        *,
        grids: Sequence[ByteGrid],
        means: Sequence[Tensor | None] | None = None,
    ) -> Int8DASPP:
        """The pyramid of folded float weights, by the names of `nn.DASPP`'s.

        Args:
            grids: of the input (its zero is 0), of each atrous branch's depthwise convolution, and of the output.
            means: of each channel of all of these but the output.
        """
        filters, in_channels = weights["direct_weight"].shape[:2]
        daspp = cls(in_channels, filters, rates)
        if grids[0].zero:
            raise ValueError(f"int8: x: expected the zero point 0, got {grids[0].zero}")
        known = means or [None] * (len(daspp.rates) + 1)
        before = grids[0].scale
        daspp._set("direct", *_quantised("direct", weights["direct_weight"], None, before, None, known[0]))
        for index in range(len(daspp.rates)):
            name, grid = f"atrous_{index}", grids[index + 1]
            zero = _start(in_channels, grid)
            depthwise = weights[f"atrous_depthwise_{index}"]
            daspp._set(f"depthwise_{index}", *_quantised(name, depthwise, zero, before, grid.scale, known[0]))
            pointwise, bias = weights[f"atrous_pointwise_{index}"], weights[f"atrous_bias_{index}"]
            daspp._set(f"pointwise_{index}", *_quantised(name, pointwise, bias, grid.scale, None, known[index + 1]))
            daspp._set_grid(name, grid)
            for key in ("depthwise", "pointwise", "bias"):
                daspp.get_buffer(f"deep_{key}_{index}").copy_(weights[f"deep_{key}_{index}"])
        for key in ("pool_weight", "pool_bias", "project_weight", "project_bias"):
            daspp.get_buffer(key).copy_(weights[key])
        daspp._set_grid("in", grids[0])
        daspp._set_grid("out", grids[-1])
        return daspp

    def _branches(self) -> list[reference.Branch]:
        return [
            reference.Branch(
                rate,
                self._part(f"depthwise_{index}", "in", f"atrous_{index}"),
                self._part(f"pointwise_{index}", f"atrous_{index}", None),
                self.grid(f"atrous_{index}").zero,
                *(self.get_buffer(f"deep_{key}_{index}") for key in ("depthwise", "pointwise", "bias")),
            )
            for index, rate in enumerate(self.rates)
        ]

    def _floats(self) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(key) for key in ("pool_weight", "pool_bias", "project_weight", "project_bias"))

    def lower(self, program: Program, x: int) -> int:
        """Add the pyramid to a plan (`plan.Program`)."""
        direct = self._part("direct", "in", None)
        grids = (self.grid("in"), self.grid("out"))
        return program.int8_daspp(x, direct, self._branches(), self._floats(), grids=grids)

    def bytes(self, x: Tensor) -> Tensor:
        grid = self.grid("out")
        pyramid = reference.daspp(
            x, self.get_buffer("in_scale"), self._part("direct", "in", None), self._branches(), *self._floats()
        )
        return reference.quantise(pyramid, self.get_buffer("out_scale"), grid.zero)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.filters}, rates={self.rates}"
