"""What the benchmarks run: an op call with real tensors, its twin in plain PyTorch, its providers, bytes and MACs.

A provider is one way of getting the same result: ours on each backend, PyTorch eager in both memory formats, PyTorch
compiled. Bytes count every argument and result once; dividing them by a time gives a rate to hold against a copy's.
The twins compute in the dtype they are given, as a user's own model would (the references of `liteseg_kernels` widen
half types first, which would make them needlessly slow).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf
from torch.utils.flop_counter import FlopCounterMode

import liteseg_kernels as lk
from liteseg_kernels.reference._parts import activate

from .shapes import MAPS, Call, Spec
from .timing import best_launch, peak_mb

OURS = ("triton", "cuda", "cpu")
EAGER, EAGER_LAST, COMPILED = "eager", "eager channels_last", "compiled"
# a wrong kernel's time means nothing: relative error against float32 on the same inputs
TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
PROVIDERS = (*(f"liteseg {backend}" for backend in OURS), EAGER, EAGER_LAST, COMPILED)


def _separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    out = tf.conv2d(tf.conv2d(x, depthwise, None, stride, padding, dilation, x.shape[1]), pointwise, bias)
    return activate(out if residual is None else out + residual, activation, negative_slope)


def _separable_conv2d_classifier(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    classifier: Tensor,
    classifier_bias: Tensor | None,
    *geometry: Any,
) -> Tensor:
    return tf.conv2d(_separable_conv2d(x, depthwise, pointwise, bias, None, *geometry), classifier, classifier_bias)


def _inverted_residual(
    x: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    residual: bool,
) -> Tensor:
    hidden = x if w1 is None else activate(tf.conv2d(x, w1, b1), activation, negative_slope)
    padding = [d * (k - 1) // 2 for d, k in zip(dilation, w2.shape[2:], strict=True)]
    hidden = tf.conv2d(hidden, w2, b2, stride, padding, dilation, w2.shape[0])
    out = tf.conv2d(activate(hidden, activation, negative_slope), w3, b3)
    return x + out if residual else out


def _shuffle_unit(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    concat: bool,
) -> Tensor:
    hidden = tf.relu(tf.conv2d(x, w1, b1, groups=x.shape[1] // w1.shape[1]))
    hidden = tf.conv2d(tf.channel_shuffle(hidden, groups), w2, b2, stride, dilation, dilation, w2.shape[0])
    branch = tf.conv2d(hidden, w3, b3, groups=groups)
    return tf.relu(torch.cat((tf.avg_pool2d(x, 3, list(stride), 1), branch), 1) if concat else x + branch)


def _daspp(
    x: Tensor,
    direct: Tensor | None,
    point_weight: Tensor | None,
    point_bias: Tensor | None,
    atrous_depthwise: Sequence[Tensor],
    atrous_pointwise: Sequence[Tensor],
    atrous_bias: Sequence[Tensor],
    deep_depthwise: Sequence[Tensor],
    deep_pointwise: Sequence[Tensor],
    deep_bias: Sequence[Tensor],
    pool_weight: Tensor,
    pool_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    rates: Sequence[int],
) -> Tensor:
    maps = [] if point_weight is None else [tf.relu(tf.conv2d(x, point_weight, point_bias))]
    for index, rate in enumerate(rates):
        between = tf.conv2d(x, atrous_depthwise[index], None, 1, rate, rate, x.shape[1])
        branch = tf.conv2d(between, atrous_pointwise[index], atrous_bias[index])
        if deep_depthwise:
            between = tf.conv2d(branch, deep_depthwise[index], None, 1, 1, 1, branch.shape[1])
            branch = tf.conv2d(between, deep_pointwise[index], deep_bias[index])
        maps.append(tf.relu(branch))
    pool = tf.relu(tf.conv2d(x.mean((2, 3), keepdim=True), pool_weight, pool_bias))
    filters = pool_weight.shape[0]
    # the pooled branch is constant over the image: a user who folds weights would fold this too
    out = tf.conv2d(torch.cat(maps, 1), project_weight[:, :-filters], project_bias)
    out = out + tf.conv2d(pool, project_weight[:, -filters:])
    return tf.relu(out if direct is None else out + tf.conv2d(x, direct))


def _upsample_concat(x: Tensor, skip: Tensor, align_corners: bool) -> Tensor:
    return torch.cat((tf.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=align_corners), skip), 1)


def _upsample_concat_separable_conv2d(
    x: Tensor,
    skip: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: int,
    negative_slope: float,
    align_corners: bool,
) -> Tensor:
    geometry = (stride, padding, dilation, activation, negative_slope)
    return _separable_conv2d(_upsample_concat(x, skip, align_corners), depthwise, pointwise, bias, None, *geometry)


def _upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    up = tf.interpolate(logits, list(size), mode="bilinear", align_corners=align_corners)
    return up.argmax(1).to(torch.uint8)


def _upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    up = tf.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    return tf.cross_entropy(
        up.float(), target.long(), weight, ignore_index=ignore_index, label_smoothing=label_smoothing
    )


def _preprocess(
    image: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    x = image.permute(0, 3, 1, 2).float()
    if list(x.shape[2:]) != list(size):
        x = tf.interpolate(x, list(size), mode="bilinear", align_corners=False)
    # one number a channel, without copies from the host, which a CUDA graph cannot hold
    out = torch.stack([(x[:, c] / 255 - mean[c]) / std[c] for c in range(x.shape[1])], 1).to(dtype)
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


TWINS: dict[str, Callable[..., Tensor]] = {
    "separable_conv2d": _separable_conv2d,
    "separable_conv2d_classifier": _separable_conv2d_classifier,
    "inverted_residual": _inverted_residual,
    "shuffle_unit": _shuffle_unit,
    "daspp": _daspp,
    "upsample_concat": _upsample_concat,
    "upsample_concat_separable_conv2d": _upsample_concat_separable_conv2d,
    "upsample_argmax": _upsample_argmax,
    "upsample_cross_entropy": _upsample_cross_entropy,
    "preprocess": _preprocess,
}


def _mean_loss(sums: tuple[Tensor, Tensor]) -> Tensor:
    losses, weights = sums
    return losses.sum() / weights.sum()


# what a user makes of an op's results, where that is more than the result itself
_FINISH: dict[str, Callable[[Any], Tensor]] = {"upsample_cross_entropy": _mean_loss}


def _real(name: str, spec: Spec, classes: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Tensor:
    make: dict[str, Any] = {"device": device, "generator": generator}
    if spec.dtype is not None:
        high = 256 if name == "image" else classes
        made = torch.randint(0, high, spec.shape, dtype=spec.dtype, **make)
        # a stripe without labels
        if name == "target":
            made[:, ::16] = 255
        return made
    value = torch.randn(spec.shape, dtype=dtype, **make)
    if name in MAPS:
        return value
    fan_in = torch.Size(spec.shape[1:]).numel()
    return value / fan_in**0.5


class Work:
    """One call with tensors: `ours()` and `torch()` give the same result.

    Args:
        call: what to run, batch included.
        dtype, device: of the floating tensors.
        channels_last: memory format of the maps.
        full: forward and backward; the result is then the gradients of the first map and of all weights.
    """

    def __init__(
        self, call: Call, dtype: torch.dtype, device: str, *, channels_last: bool, full: bool = False, seed: int = 0
    ) -> None:
        self.call, self.dtype, self.full = call, dtype, full
        named = dict(call.arguments)
        generator = torch.Generator(device).manual_seed(seed)
        classes = named["logits"].shape[1] if "logits" in named else 0
        memory_format = torch.channels_last if channels_last else torch.contiguous_format

        def real(name: str, value: Any) -> Any:
            if isinstance(value, Spec):
                made = _real(name, value, classes, dtype, device, generator)
                if name in MAPS and made.is_floating_point():
                    made = made.contiguous(memory_format=memory_format)
                return made.requires_grad_(full and made.is_floating_point())
            if isinstance(value, tuple):
                return [real(name, item) for item in value]
            if isinstance(value, torch.dtype):
                return dtype
            return value

        self.names = list(named)
        self.arguments = [real(name, value) for name, value in call.arguments]
        if "channels_last" in named:
            self.arguments[self.names.index("channels_last")] = channels_last
        self.upstream: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        flat = [t for a in self.arguments for t in (a if isinstance(a, list) else [a])]
        return [t for t in flat if isinstance(t, Tensor)]

    def maps(self) -> list[Tensor]:
        pairs = zip(self.names, self.arguments, strict=True)
        return [value for name, value in pairs if name in MAPS and isinstance(value, Tensor)]

    def _finish(self, out: Tensor) -> Tensor:
        if not self.full:
            return out
        leaves = [t for t in self.tensors() if t.requires_grad]
        if self.upstream is None:
            self.upstream = torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out)
        gradients = torch.autograd.grad(out, leaves, self.upstream)
        return gradients[0] if len(gradients) == 1 else torch.cat([g.flatten() for g in gradients])

    def with_arguments(self, change: Callable[[str, Any], Any]) -> Work:
        """A copy with every argument replaced by change(name, argument)."""
        other = object.__new__(Work)
        arguments = [change(name, value) for name, value in zip(self.names, self.arguments, strict=True)]
        other.__dict__ |= self.__dict__ | {"arguments": arguments}
        return other

    def op(self) -> Any:
        """The op's own result, on the backend that `use_backend` names."""
        return getattr(torch.ops.liteseg, self.call.op)(*self.arguments)

    def ours(self) -> Tensor:
        """The result by the op."""
        return self._finish(_FINISH.get(self.call.op, lambda result: result)(self.op()))

    def torch(self, function: Callable[..., Tensor] | None = None) -> Tensor:
        """By plain PyTorch; `function` replaces the twin (its compiled form)."""
        return self._finish((function or TWINS[self.call.op])(*self.arguments))

    def exact(self) -> Tensor:
        """By plain PyTorch in float32 on the same values."""

        def wide(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [wide(name, item) for item in value]
            if isinstance(value, torch.dtype):
                return torch.float32
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.detach().float().requires_grad_(value.requires_grad)
            return value

        other = self.with_arguments(wide)
        other.upstream = None if self.upstream is None else self.upstream.float()
        return other.torch()


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error; for labels the share that differs. Infinite where anything is not finite."""
    if not expected.is_floating_point():
        return (actual != expected).double().mean().item()
    got, want = actual.double(), expected.double()
    if not torch.isfinite(got).all():
        return float("inf")
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


@dataclass(frozen=True)
class Cost:
    """Bytes that a call cannot avoid moving, and its multiply-accumulates (of convolutions)."""

    bytes: int
    macs: int


def cost(call: Call, dtype: torch.dtype, *, full: bool = False) -> Cost:
    """Every argument read once, every result written once; with `full` the inputs and the result's gradient are read
    once more and the inputs' gradients written."""

    def size(value: Any, floating: bool = False) -> int:
        if isinstance(value, tuple):
            return sum(size(item, floating) for item in value)
        if not isinstance(value, Spec) or (floating and value.dtype is not None):
            return 0
        return torch.Size(value.shape).numel() * (value.dtype or dtype).itemsize

    given = [value for _, value in call.arguments]
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        arguments = [_meta(value, dtype) for value in given]
        out = TWINS[call.op](*arguments)
    read, written = sum(map(size, given)), out.numel() * out.element_size()
    macs = counter.get_total_flops() // 2
    if not full:
        return Cost(read + written, macs)
    gradients = sum(size(value, floating=True) for value in given)
    # the forward pass's result, its gradient, the inputs once more, and their gradients; products are three times
    return Cost(read + written + written + read + gradients, 3 * macs)


def _meta(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Spec):
        return torch.empty(value.shape, dtype=value.dtype or dtype, device="meta")
    if isinstance(value, tuple):
        return [_meta(item, dtype) for item in value]
    return dtype if isinstance(value, torch.dtype) else value


def compiled(call: Call, device: str) -> Callable[..., Tensor]:
    """The twin through torch.compile. On a GPU autotuned; the caller's own CUDA graph takes the place of Inductor's,
    which would copy the arguments of every call first."""
    if device == "cuda":
        return torch.compile(TWINS[call.op], mode="max-autotune-no-cudagraphs", dynamic=False)
    return torch.compile(TWINS[call.op], dynamic=False)


def on(backend: str, work: Work) -> Callable[[], Tensor]:
    """`work.ours` on one backend, strictly."""

    def run() -> Tensor:
        with lk.use_backend(backend, strict=True):
            return work.ours()

    return run


def ready(
    provider: str, call: Call, dtype: torch.dtype, device: str, *, full: bool = False
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of a provider to time, and columns of what is known about it: how it is launched, its error and memory.

    Raises lk.BackendError where ours has no kernel.
    """
    work, run = provide(provider, call, dtype, device, full=full)
    off = error(run(), work.exact())
    # the twins' own rounding in half precision is theirs
    wrong = off > TOLERANCE[dtype] and provider.startswith("liteseg")
    memory = peak_mb(run, device)
    timed, launch = best_launch(run, device)
    return timed, {"launch": launch, "error": off, "peak MB": memory, "status": "wrong" if wrong else "ok"}


def provide(
    provider: str, call: Call, dtype: torch.dtype, device: str, *, full: bool = False
) -> tuple[Work, Callable[[], Tensor]]:
    """The work of one provider and the function that does it; "liteseg <backend>" may raise lk.BackendError."""
    work = Work(call, dtype, device, channels_last=provider != EAGER, full=full)
    if provider in (EAGER, EAGER_LAST):
        return work, work.torch
    if provider == COMPILED:
        function = compiled(call, device)
        return work, lambda: work.torch(function)
    return work, on(provider.removeprefix("liteseg "), work)
