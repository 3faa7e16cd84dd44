"""Networks in int8 for the CPU, from trained ones and some pictures: post-training quantisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg.models.int8 import geometry, int8_blocks, quantisable, replace
from liteseg.predict import predict
from liteseg.progress import progress_bar
from liteseg_kernels.int8 import ByteGrid, Int8InvertedResidual
from liteseg_kernels.nn import InvertedResidual
from liteseg_kernels.plan import PlannedModule

__all__ = ["Ranges", "quantize"]

Ranges = Literal["mse", "percentile", "minmax"]
Model = TypeVar("Model", bound=nn.Module)

_BINS = 8192
# values of one map of one picture that are looked at; the ends of the range are those of all of them
_MOST_VALUES = 1 << 19
# share of the values that a range by percentile leaves outside, at either end
_OUTSIDE = 1e-4
# of the largest values, what the ends of a range are tried at
_SHARES = torch.linspace(0.3, 1.0, 57).tolist()


class _Values:
    """What is known of a map: its least and largest value, a histogram, and the mean of each channel."""

    def __init__(self, channels: int) -> None:
        self.low = self.high = 0.0
        self._limit = 1.0
        self._counts = torch.zeros(_BINS, dtype=torch.float64)
        self._sums = torch.zeros(channels, dtype=torch.float64)
        self._pixels = 0

    def add(self, x: Tensor) -> None:
        """x: float [N, C, H, W]."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        while self._limit < max(-self.low, self.high):
            # twice the range, with bins twice as wide
            self._limit *= 2
            counts = torch.zeros_like(self._counts)
            counts[_BINS // 4 : 3 * _BINS // 4] = self._counts.view(-1, 2).sum(1)
            self._counts = counts
        pixels = x.flatten(2)
        pixels = pixels[:, :, :: -(-x.numel() // _MOST_VALUES)].float()
        self._counts += torch.histc(pixels, _BINS, -self._limit, self._limit)
        self._sums += pixels.double().sum((0, 2))
        self._pixels += pixels.shape[0] * pixels.shape[2]

    @property
    def means(self) -> Tensor:
        return self._sums / max(self._pixels, 1)

    def grid(self, ranges: Ranges) -> ByteGrid:
        """The numbers that bytes stand for."""
        if ranges == "minmax" or self.low == self.high:
            return ByteGrid.spanning(self.low, self.high)
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * self._limit / _BINS) - self._limit
        if ranges == "percentile":
            share = self._counts.cumsum(0) / self._counts.sum()
            inside = centres[(share > _OUTSIDE) & (share < 1 - _OUTSIDE)]
            ends = (float(inside.min()), float(inside.max())) if len(inside) else (self.low, self.high)
            return ByteGrid.spanning(max(self.low, ends[0]), min(self.high, ends[1]))
        held = self._counts > 0
        centres, counts = centres[held], self._counts[held]

        def error(low: float, high: float) -> float:
            grid = ByteGrid.spanning(low, high)
            steps = (centres / grid.scale).round().clamp(-grid.zero, 255 - grid.zero)
            return float((counts * (steps * grid.scale - centres) ** 2).sum())

        low, high = self.low, self.high
        for _ in range(2):
            high = min((self.high * share for share in _SHARES), key=lambda end: error(low, end))
            low = min((self.low * share for share in _SHARES), key=lambda end: error(end, high))
        return ByteGrid.spanning(low, high)


class _Block:
    """A block to be quantised: its float weights, and what its four maps hold."""

    def __init__(self, block: InvertedResidual) -> None:
        self.weights = {name: weight.float() for name, weight in block.folded().items() if weight is not None}
        self.geometry = geometry(block)
        self.activation = nn.functional.relu6 if block.activation == "relu6" else nn.functional.relu
        hidden, channels = self.weights["expand_weight"].shape[:2]
        self.maps = [_Values(count) for count in (channels, hidden, hidden, self.weights["project_weight"].shape[0])]

    def look(self, block: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        """A forward hook."""
        weights, (x, *_) = self.weights, given
        wide = self.activation(nn.functional.conv2d(x, weights["expand_weight"], weights["expand_bias"]))
        dilation = self.geometry["dilation"]
        hidden = self.activation(
            nn.functional.conv2d(
                *(wide, weights["depthwise_weight"], weights["depthwise_bias"], self.geometry["stride"]),
                *(dilation, dilation, wide.shape[1]),
            )
        )
        for values, seen in zip(self.maps, (x, wide, hidden, out), strict=True):
            values.add(seen)

    def quantised(self, ranges: Ranges, bias_correction: bool) -> Int8InvertedResidual:
        first, wide, hidden, last = (values.grid(ranges) for values in self.maps)
        means = tuple(values.means for values in self.maps[:3])
        return Int8InvertedResidual.of(
            dict(self.weights),
            **self.geometry,
            grids=(first, wide, hidden, last),
            means=(means[0], means[1], means[2]) if bias_correction else None,
        )


def _check(model: Any, ranges: Any, keep: Collection[str]) -> None:
    if not isinstance(model, PlannedModule):
        raise TypeError(f"quantize: model: expected a network of this library, got {type(model).__name__}")
    if int8_blocks(model):
        raise ValueError("quantize: model: expected a float network, got one with blocks in int8")
    if ranges not in get_args(Ranges):
        raise ValueError(f"quantize: ranges: expected one of {', '.join(get_args(Ranges))}, got {ranges!r}")
    tensor = next(model.parameters())
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise TypeError(
            f"quantize: model: expected float32 weights on the CPU, got {tensor.dtype} on {tensor.device.type}"
        )
    names = {name for name, part in model.named_modules() if isinstance(part, InvertedResidual)}
    for name in keep:
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ValueError(f"quantize: keep: expected names of blocks ({known}), got {name!r}")


def quantize(
    model: Model,
    images: Iterable[Any],
    *,
    ranges: Ranges = "mse",
    bias_correction: bool = True,
    keep: Collection[str] = (),
    scale: float | None = None,
    progress: bool = False,
) -> Model:
    """A fused copy of a network whose inverted residuals run in int8 on the CPU.

    Weights become int8 with one scale for each channel, the maps in and between these blocks uint8 with one scale and
    zero point each, chosen from what the maps hold for `images`; sums are exact int32. Everything else stays in the
    dtype of the copy: float32, or bfloat16 after ``.to(torch.bfloat16)`` or under autocast, where the processor has
    AVX512_BF16. The integers are the same on every processor and for any number of threads; products of bytes are fast
    with AVX512_VNNI, and no faster than float32 without it. No float block stands in for an int8 one:
    :func:`liteseg_kernels.explain` lists what runs in int8.

    The copy is for inference: it refuses training mode, other dtypes and other devices. :func:`liteseg.save_weights`
    keeps it, and ``create_model(weights=...)`` makes it again (to be fused as any other).

    Args:
        model: a network of this library with inverted residuals, float32 on the CPU: LiteSeg with MobileNetV2.
        images: what the network will see, some dozens: pictures as :func:`liteseg.predict` takes them, or normalised
            float tensors [N, C, H, W]. Labels are not needed.
        ranges: which numbers a map's bytes reach to: those with the least squared error ("mse"), all but 1 in 10,000 at
            either end ("percentile"), or all that were seen ("minmax").
        bias_correction: make up, in the biases, for what rounding the weights moves the mean of each channel by.
        keep: names of blocks that stay in float.
        scale: input scale for pictures; ``model.config.input_scale`` by default.
        progress: show a progress bar on stderr.

    Raises:
        TypeError: another model, dtype or device.
        ValueError: a network without a block that has an int8 form; no images; NaN in a map; a name in `keep` that is
            none.

    Example:
        >>> import liteseg, torch
        >>> model = liteseg.create_model("liteseg_mobilenetv2", num_classes=5)
        >>> fast = liteseg.quantize(model, [torch.randn(2, 3, 64, 96)])
        >>> fast.backbone.blocks[1]
        Int8InvertedResidual(16, 96, 24, stride=2, dilation=1, residual=False)
    """
    _check(model, ranges, keep)
    fused = lk.fuse(model)
    blocks: dict[str, _Block] = {}
    reasons = {}
    with ExitStack() as hooks:
        for name, part in list(fused.named_modules()):
            if isinstance(part, InvertedResidual) and name not in keep:
                reason = quantisable(part)
                if reason is None:
                    blocks[name] = _Block(part)
                    hooks.callback(part.register_forward_hook(blocks[name].look).remove)
                else:
                    reasons[name] = reason
        if not blocks:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no inverted residual"
            raise ValueError(f"quantize: model: expected blocks that have an int8 form, got none: {why}")
        count = 0
        for image in progress_bar(images, desc="calibrate", unit="image", show=progress):
            predict(fused, image, scale=scale)
            count += 1
    if count == 0:
        raise ValueError("quantize: images: expected at least one, got none")
    for name, block in blocks.items():
        if any(not torch.isfinite(torch.tensor([v.low, v.high])).all() or v.means.isnan().any() for v in block.maps):
            raise ValueError(f"quantize: {name}: expected finite values, got NaN or infinity (damaged weights or images?)")
        try:
            replace(fused, name, block.quantised(ranges, bias_correction))
        except ValueError as error:
            raise ValueError(f'quantize: {name}: {error} (keep=["{name}"] leaves it in float)') from error
    return lk.fuse(fused)


def evenly(items: list[Any], count: int) -> list[Any]:
    """`count` of them, or all, at even distances: neighbours in a folder are often frames of one scene."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
