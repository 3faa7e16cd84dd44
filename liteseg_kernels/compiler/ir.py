"""What a region of a graph is made of between torch's ops and the words of a program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as tf

from .. import activations

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Activation:
    """What follows a layer, `negative_slope` being leaky_relu's."""

    name: str | None = None
    negative_slope: float = 0.0

    def __bool__(self) -> bool:
        return self.name is not None

    @property
    def smooth(self) -> bool:
        """Whether it is applied to what is stored already."""
        return self.name not in activations.NAMES


NONE = Activation()


@dataclass(frozen=True)
class Norm:
    """Batch normalisation by running statistics; the fields are places in the region's arguments."""

    weight: int | None
    bias: int | None
    mean: int
    var: int
    eps: float

    def scale_and_shift(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(arguments[self.var].double() + self.eps)
        if self.weight is not None:
            scale = scale * arguments[self.weight].double()
        shift = -arguments[self.mean].double() * scale
        if self.bias is not None:
            shift = shift + arguments[self.bias].double()
        return scale, shift


@dataclass(frozen=True)
class Scalar:
    """x * scale + shift with plain numbers."""

    scale: float = 1.0
    shift: float = 0.0

    def scale_and_shift(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.scale, dtype=torch.float64), torch.tensor(self.shift, dtype=torch.float64)


@dataclass(eq=False)
class Op:
    """One operation and the map [N, channels, H, W] that it makes."""

    name: str
    inputs: list[Op]
    # (channels, height, width) for the sizes that the region was traced with; only the channels are fixed
    shape: Shape
    activation: Activation = NONE
    # whether an activation may be applied as part of it
    activates: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        return self.shape[0]

    def pixels(self) -> int:
        return self.shape[1] * self.shape[2]

    def macs(self) -> int:
        """Multiply-adds for one image."""
        return 0

    def describe(self) -> str:
        kind = type(self).__name__.lower()
        return f"{kind} + {self.activation.name}" if self.activation else kind


@dataclass(eq=False)
class Input(Op):
    index: int = 0  # among the region's arguments


@dataclass(eq=False)
class Weighted(Op):
    """A convolution: weights are places in the region's arguments, `after` is folded into them. With `branches` it is
    the sum of those, convolutions of the same input whose taps it has among its own."""

    weight: int | None = None  # None: ones
    bias: int | None = None
    after: list[Norm | Scalar] = field(default_factory=list)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    branches: list[Weighted] = field(default_factory=list)
    activates = True

    def folded(self, arguments: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Weight and bias in float64."""
        if self.branches:
            folded = [branch.folded(arguments) for branch in self.branches]
            parts = zip(self.branches, folded, strict=True)
            weight = torch.stack([self._spread(branch, own) for branch, (own, _) in parts]).sum(0)
            bias = torch.stack([own for _, own in folded]).sum(0)
        else:
            if self.weight is None:
                weight = torch.ones(self.channels, 1, 1, 1, dtype=torch.float64)
            else:
                weight = arguments[self.weight].detach().double()
            bias = weight.new_zeros(self.channels)
            if self.bias is not None:
                bias = arguments[self.bias].detach().double()
        for affine in self.after:
            scale, shift = affine.scale_and_shift(arguments)
            weight = weight * scale.reshape(-1, 1, 1, 1)
            bias = bias * scale + shift
        return weight, bias

    def _spread(self, branch: Weighted, weight: Tensor) -> Tensor:
        """A branch's weight with this one's taps and channels."""
        if isinstance(branch, Depthwise) and isinstance(self, Convolution):
            dense = weight.new_zeros(self.channels, self.channels, *branch.kernel)
            dense.diagonal().copy_(weight[:, 0].permute(1, 2, 0))
            weight = dense
        rows, columns = ((mine - own) // 2 for mine, own in zip(self.kernel, branch.kernel, strict=True))
        return tf.pad(weight, (columns, columns, rows, rows))

    def places(self) -> Iterable[int]:
        """The arguments that the folded weights depend on."""
        for branch in self.branches:
            yield from branch.places()
        for place in (self.weight, self.bias):
            if place is not None:
                yield place
        for affine in self.after:
            if isinstance(affine, Norm):
                yield from (p for p in (affine.weight, affine.bias, affine.mean, affine.var) if p is not None)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def is_point(self) -> bool:
        """A 1x1 convolution that touches nothing but its pixel."""
        plain = self.kernel == self.stride == (1, 1)
        return plain and self.padding == (0, 0, 0, 0)


@dataclass(eq=False)
class Convolution(Weighted):
    """Dense."""

    def macs(self) -> int:
        return self.pixels() * self.channels * self.inputs[0].channels * self.taps

    def describe(self) -> str:
        what = f"{self.kernel[0]}x{self.kernel[1]} convolution"
        return f"{what} + {self.activation.name}" if self.activation else what


@dataclass(eq=False)
class Depthwise(Weighted):
    """A filter a channel; 1x1 with neither padding nor stride is a scale and a shift a channel."""

    def macs(self) -> int:
        return self.pixels() * self.channels * self.taps

    def describe(self) -> str:
        what = "scale and shift" if self.is_point() else f"{self.kernel[0]}x{self.kernel[1]} depthwise convolution"
        return f"{what} + {self.activation.name}" if self.activation else what


@dataclass(eq=False)
class Block(Op):
    """Pointwise expansion (or none), depthwise convolution, pointwise projection, and perhaps the input added."""

    expand: Convolution | None = None
    depthwise: Depthwise | None = None
    project: Convolution | None = None
    residual: bool = False
    activates = True

    def macs(self) -> int:
        assert self.depthwise is not None and self.project is not None
        return sum(part.macs() for part in (self.expand, self.depthwise, self.project) if part is not None)

    def describe(self) -> str:
        return "separable convolution" if self.expand is None else "inverted residual"


@dataclass(eq=False)
class Stem(Op):
    """A dense 3x3 convolution of few channels, a 3x3 depthwise one and a pointwise one."""

    conv: Convolution | None = None
    depthwise: Depthwise | None = None
    project: Convolution | None = None

    def macs(self) -> int:
        return sum(part.macs() for part in (self.conv, self.depthwise, self.project) if part is not None)

    def describe(self) -> str:
        return "3x3 convolution and separable convolution"


@dataclass(eq=False)
class Window(Op):
    """Max or average pool."""

    maximum: bool = True
    counts_zeros: bool = True
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def describe(self) -> str:
        return f"{self.kernel[0]}x{self.kernel[1]} {'max' if self.maximum else 'average'} pool"


@dataclass(eq=False)
class Combine(Op):
    """Sum or product of two maps; the second may be one pixel for each image."""

    multiplies: bool = False
    activates = True

    def describe(self) -> str:
        what = "product" if self.multiplies else "sum"
        return f"{what} + {self.activation.name}" if self.activation else what


@dataclass(eq=False)
class Mean(Op):
    """Over all pixels."""


@dataclass(eq=False)
class Concat(Op):
    """Along the channels."""


@dataclass(eq=False)
class Resize(Op):
    """Bilinear; with a second input, that one behind it along the channels. Sizes are numbers or places in the
    region's arguments."""

    sizes: tuple[Any, Any] = (0, 0)
    align_corners: bool = False

    def describe(self) -> str:
        return "bilinear resize" if len(self.inputs) == 1 else "bilinear resize + concat"


@dataclass(eq=False)
class Nearest(Op):
    sizes: tuple[Any, Any] = (0, 0)


@dataclass(eq=False)
class Pad(Op):
    """With zeros: top, bottom, left, right."""

    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(eq=False)
class Activate(Op):
    activates = True

    def describe(self) -> str:
        return str(self.activation.name)


@dataclass(eq=False)
class Labels(Op):
    """The best channel of every pixel of the input, resized first where `sizes` says so; int64 [N, H, W]."""

    sizes: tuple[Any, Any] | None = None
    align_corners: bool = False

    def describe(self) -> str:
        return "arg max" if self.sizes is None else "bilinear resize + arg max"


@dataclass(frozen=True)
class Argument:
    """A size that the caller hands over at each call: its place in the region's arguments."""

    index: int
