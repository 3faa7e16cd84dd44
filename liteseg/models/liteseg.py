"""The LiteSeg network (section III of the paper) and its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import liteseg_kernels as lk
from liteseg.models.encoders import ENCODERS, encoder_class, make_encoder
from liteseg.models.fields import check_counts, check_flags, check_use, is_int, reject
from liteseg.models.hub import Hub
from liteseg_kernels import intact
from liteseg_kernels.nn import DASPP, ConvNormAct, SeparableConv2d, UpsampleConcat
from liteseg_kernels.plan import PlannedModule, Program

MIN_SIZE = 32


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild a model, checked when it is made.

    Attributes:
        name: registry name, for example ``"liteseg_mobilenetv2"``; ``"liteseg"`` with one of timm's backbones.
        backbone: a name in ``liteseg.models.encoders.ENCODERS``: ``"mobilenetv2"``, ``"shufflenet"``, ``"darknet19"``,
            or ``"timm/<model>"``.
        num_classes: channels of the logits.
        in_channels: of the input: 3 for RGB, 1 for a thermal camera, 4 for RGB and depth ...
        output_stride: of the backbone; which ones exist depends on it.
        separable: depthwise + pointwise convolutions in head and decoder ("DW" in Table I) instead of standard ones.
        deeper: a second 3x3 convolution after each atrous one (DASPP instead of ASPP).
        short_residual: the encoder's output joins the branches of the head.
        long_residual: the low-level feature joins the decoder.
        filters: channels of every branch and of the decoder.
        rates: dilations of the atrous branches.
        class_names: one a class, or None.
        input_scale: factor by which ``predict`` resizes images before the network sees them.
    """

    name: str
    backbone: str
    num_classes: int = 19
    in_channels: int = 3
    output_stride: int = 32
    separable: bool = True
    deeper: bool = True
    short_residual: bool = True
    long_residual: bool = True
    filters: int = 96
    rates: tuple[int, ...] = (3, 6, 9)
    class_names: tuple[str, ...] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        encoder = encoder_class(self.backbone)
        if encoder is None:
            reject(self, "backbone", f"one of {', '.join(ENCODERS)}, timm/<model>", self.backbone)
        check_counts(self, "num_classes", "in_channels", "filters")
        allowed = encoder.output_strides
        if not is_int(self.output_stride) or self.output_stride not in allowed:
            reject(self, "output_stride", f"one of {sorted(allowed)} for {self.backbone}", self.output_stride)
        check_flags(self, "separable", "deeper", "short_residual", "long_residual")
        if not isinstance(self.rates, (tuple, list)) or not self.rates:
            reject(self, "rates", "a non-empty tuple of integers", self.rates)
        if not all(is_int(rate) and rate >= 1 for rate in self.rates):
            reject(self, "rates", "integers of at least 1", self.rates)
        # lists come from JSON and YAML
        object.__setattr__(self, "rates", tuple(self.rates))
        check_use(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


class LiteSeg(PlannedModule, Hub):
    """LiteSeg: float [N, in_channels, H, W], normalised (by default RGB) -> logits [N, num_classes, H, W].

    Any H and W of at least 32. A plain module: trainable at any batch size (1 included, see :class:`DASPP`), and its
    state dict is the same whichever kernels run it. For inference :func:`liteseg.fuse` returns a faster copy.

    Example:
        >>> import torch, liteseg
        >>> model = liteseg.create_model("liteseg_mobilenetv2", num_classes=11).eval()
        >>> model(torch.zeros(1, 3, 65, 97)).shape
        torch.Size([1, 11, 65, 97])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.backbone = make_encoder(config.backbone, config.output_stride, config.in_channels)
        self.daspp = DASPP(
            self.backbone.out_channels,
            config.filters,
            config.rates,
            deeper=config.deeper,
            separable=config.separable,
            short_residual=config.short_residual,
        )
        conv: type[SeparableConv2d] | type[ConvNormAct] = SeparableConv2d if config.separable else ConvNormAct
        decoder_channels = config.filters
        self.reduce: nn.Module | None = None
        self.upsample_concat: UpsampleConcat | None = None
        if config.long_residual:
            low_level_channels = self.backbone.low_level_channels
            if self.backbone.decoder_channels is not None:
                self.reduce = conv(low_level_channels, self.backbone.decoder_channels, 1, activation="relu")
                low_level_channels = self.backbone.decoder_channels
            self.upsample_concat = UpsampleConcat(align_corners=True)
            decoder_channels += low_level_channels
        self.decoder = nn.Sequential(
            conv(decoder_channels, config.filters, 3, activation="relu"),
            conv(config.filters, config.filters, 3, activation="relu"),
        )
        self.classifier = nn.Conv2d(config.filters, config.num_classes, 1)

    def _check_input(self, x: torch.Tensor) -> None:
        shape = x.shape
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(f"LiteSeg: x: expected a tensor of shape [N, {self.in_channels}, H, W], got {list(shape)}")
        if not x.is_floating_point():
            raise TypeError(f"LiteSeg: x: expected a floating point tensor, normalised, got {x.dtype}")
        if shape[2] < MIN_SIZE or shape[3] < MIN_SIZE:
            raise ValueError(f"LiteSeg: x: expected height and width of at least {MIN_SIZE}, got {shape[2]}x{shape[3]}")

    def lower(self, program: Program, x: int) -> int:
        """Describe the network up to its low-resolution logits for a plan (:class:`PlannedModule`)."""
        low_level, encoded = self.backbone.lower(program, x)
        y = program.run(self.daspp, "daspp", encoded)
        if self.upsample_concat is None:
            y = program.upsample(y, low_level, concat=False)
        else:
            skip = low_level if self.reduce is None else program.run(self.reduce, "reduce", low_level)
            y = program.run(self.upsample_concat, "upsample_concat", y, skip)
        for index, convolution in enumerate(self.decoder):
            y = program.run(convolution, f"decoder.{index}", y)
        return program.run(self.classifier, "classifier", y)

    def low_resolution_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits before the last upsampling, [N, num_classes, h, w], (h, w) the low-level feature's.

        With ``lk.UpsampleArgmax`` or ``lk.UpsampleCrossEntropyLoss`` the full-size logits need never exist.
        """
        self._check_input(x)
        return lk.runtime.logits(self, x)

    def forward_modules(self, x: torch.Tensor) -> torch.Tensor:
        """`low_resolution_logits`, module by module."""
        low_level, encoded = self.backbone(x)
        y = self.daspp(encoded)
        if self.upsample_concat is None:
            y = F.interpolate(y, size=low_level.shape[-2:], mode="bilinear", align_corners=True)
        else:
            skip = low_level if self.reduce is None else self.reduce(low_level)
            # joined with what is around it, unless somebody may want to see the decoder called
            if intact.altered(self.decoder, "decoder", nn.Sequential) is None and len(self.decoder) == 2:
                first, second = self.decoder
                if isinstance(first, SeparableConv2d) and isinstance(second, SeparableConv2d):
                    y = first.forward_concat(y, skip, self.upsample_concat)
                    return second.forward_classifier(y, self.classifier)
            y = self.upsample_concat(y, skip)
        return self.classifier(self.decoder(y))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.low_resolution_logits(x)
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=True)

    def to_reference(self) -> nn.Module:
        """A copy with the same weights that runs as plain torch.nn modules: for export and for hooks."""
        return lk.to_reference(self)
