"""Networks in int8 for the CPU, from trained ones and some pictures: post-training quantisation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg.models.int8 import float_blocks, geometry, int8_blocks, quantisable, replace
from liteseg.predict import evaluating, predict, predict_at
from liteseg.progress import progress_bar
from liteseg.reading import read_image
from liteseg_kernels.int8 import (
    ByteGrid,
    Int8DASPP,
    Int8InvertedResidual,
    Int8Module,
    Int8Pointwise,
    Int8SeparableConv2d,
)
from liteseg_kernels.nn import DASPP, InvertedResidual, SeparableConv2d
from liteseg_kernels.plan import PlannedModule

__all__ = ["Comparison", "Ranges", "compare", "evenly", "quantize"]

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
    """A block to be quantised: its float weights, and what its maps hold."""

    def __init__(self, block: Any) -> None:
        self.kind = type(block)
        self.weights = {name: weight.float() for name, weight in block.folded().items() if weight is not None}
        self.relu = nn.functional.relu6 if _relu6(block) else nn.functional.relu
        self.geometry = geometry(block) if isinstance(block, InvertedResidual) else {}
        self.rates = block.rates if isinstance(block, DASPP) else ()
        self.maps: list[_Values] = []

    def _inside(self, x: Tensor) -> Iterator[Tensor]:
        """The maps between the input and the output that become bytes."""
        weights = self.weights
        if self.kind is InvertedResidual:
            wide = self.relu(nn.functional.conv2d(x, weights["expand_weight"], weights["expand_bias"]))
            yield wide
            stride, dilation = self.geometry["stride"], self.geometry["dilation"]
            depthwise = (weights["depthwise_weight"], weights["depthwise_bias"], stride, dilation, dilation)
            yield self.relu(nn.functional.conv2d(wide, *depthwise, wide.shape[1]))
        if self.kind is SeparableConv2d:
            yield nn.functional.conv2d(x, weights["depthwise_weight"], None, 1, 1, 1, x.shape[1])
        for index, rate in enumerate(self.rates):
            weight = weights[f"atrous_depthwise_{index}"]
            yield nn.functional.conv2d(x, weight, None, 1, rate, rate, x.shape[1])

    def look(self, block: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        """A forward hook."""
        for index, seen in enumerate((given[0], *self._inside(given[0]), out)):
            if index == len(self.maps):
                self.maps.append(_Values(seen.shape[1]))
            self.maps[index].add(seen)

    def quantised(self, ranges: Ranges, bias_correction: bool) -> Int8Module:
        grids = [values.grid(ranges) for values in self.maps]
        means = [values.means if bias_correction else None for values in self.maps[:-1]]
        weights = self.weights
        if self.kind is InvertedResidual:
            return Int8InvertedResidual.of(dict(weights), **self.geometry, grids=grids, means=means)
        if self.kind is DASPP:
            return Int8DASPP.of(weights, self.rates, grids=grids, means=means)
        if self.kind is SeparableConv2d:
            parts = (weights["depthwise_weight"], weights["pointwise_weight"], weights.get("bias"))
            return Int8SeparableConv2d.of(*parts, grids=grids, means=means)
        return Int8Pointwise.of(weights["weight"], weights["bias"], grids=grids, means=means)


def _relu6(block: Any) -> bool:
    activation = getattr(block, "activation", None)
    return activation == "relu6" or isinstance(activation, nn.ReLU6)


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
    names = float_blocks(model)
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
        for name, part in float_blocks(fused).items():
            reason = "it is to be kept" if name in keep else quantisable(part)
            if isinstance(part, SeparableConv2d) and (
                keep or not any(block.kind is DASPP for block in blocks.values())
            ):
                reason = reason or "expected all in front of the decoder in int8"
            if reason is None:
                blocks[name] = _Block(part)
                hooks.callback(part.register_forward_hook(blocks[name].look).remove)
            else:
                reasons[name] = reason
        if not any(block.kind is InvertedResidual for block in blocks.values()):
            tried = {
                name: why for name, why in reasons.items() if isinstance(fused.get_submodule(name), InvertedResidual)
            }
            why = "; ".join(f"{name}: {why}" for name, why in tried.items()) or "it has no inverted residual"
            raise ValueError(f"quantize: model: expected blocks that have an int8 form, got none: {why}")
        count = 0
        for image in progress_bar(images, desc="calibrate", unit="image", show=progress):
            predict(fused, image, scale=scale)
            count += 1
    if count == 0:
        raise ValueError("quantize: images: expected at least one, got none")
    for name, block in blocks.items():
        if any(not torch.isfinite(torch.tensor([v.low, v.high])).all() or v.means.isnan().any() for v in block.maps):
            raise ValueError(
                f"quantize: {name}: expected finite values, got NaN or infinity (damaged weights or images?)"
            )
        try:
            replace(fused, name, block.quantised(ranges, bias_correction))
        except ValueError as error:
            raise ValueError(f'quantize: {name}: {error} (keep=["{name}"] leaves it in float)') from error
    return lk.fuse(fused)


@dataclass(frozen=True)
class Comparison:
    """A network beside its int8 copy, on one picture.

    Attributes:
        equal: share of pixels with the same label.
        before, after: seconds a picture, medians of `rounds` runs in turns: from pixels to labels.
        size: height and width of the picture.
        threads: of PyTorch, which the kernels use too.
        refused: why the copy does not run from a plan here, or None.
    """

    equal: float
    before: float
    after: float
    rounds: int
    size: tuple[int, int]
    threads: int
    refused: str | None

    def __str__(self) -> str:
        size = f"{self.size[0]}x{self.size[1]}"
        text = (
            f"{1e3 * self.before:.1f} ms in float, {1e3 * self.after:.1f} ms in int8 for a picture of {size} "
            f"({self.threads} threads, median of {self.rounds}), {100 * self.equal:.2f} % of the labels equal"
        )
        return text if self.refused is None else f"{text}; the int8 network does not run from a plan: {self.refused}"


def compare(model: nn.Module, quantised: nn.Module, image: Any, *, rounds: int = 10) -> Comparison:
    """Labels and times of a network, fused, and of its int8 copy on a picture: a path or uint8 [H, W, 3]."""
    pixels = image if not isinstance(image, str) and hasattr(image, "shape") else read_image(image)
    channels = getattr(quantised, "in_channels", 3)
    times: dict[str, list[float]] = {"before": [], "after": []}
    with evaluating(lk.fuse(model)) as before, evaluating(quantised) as after:
        equal = float((predict_at(before, pixels) == predict_at(after, pixels)).mean())
        for _ in range(rounds):
            for name, network in (("before", before), ("after", after)):
                start = time.perf_counter()
                predict_at(network, pixels)
                times[name].append(time.perf_counter() - start)
        # outside of inference mode a network may record gradients, and then has no plan
        how = lk.runtime.explain(after, torch.zeros(1, channels, 64, 64)).refused.get("plan")
    return Comparison(
        equal=equal,
        before=statistics.median(times["before"]),
        after=statistics.median(times["after"]),
        rounds=rounds,
        size=(pixels.shape[0], pixels.shape[1]),
        threads=torch.get_num_threads(),
        refused=how,
    )


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, or all, at even distances: neighbours in a folder are often frames of one scene."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
