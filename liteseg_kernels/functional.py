"""Functional forms of the ops, in the style of torch.nn.functional. Weights come with normalisation folded in.

Common to all: NCHW shapes; float32, float16, bfloat16 (float64 through the reference); NCHW or channels_last input,
views included, and output in the input's memory format; batch 0 is allowed. Wrong shapes and values raise ValueError,
wrong types and dtypes TypeError, before any kernel runs. Which backend runs: see `use_backend` and `explain`.
float32 products are exact; on a GPU they are rounded to tf32 where both torch.backends.cuda.matmul.allow_tf32 (off by
default) and torch.backends.cudnn.allow_tf32 (on by default) say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from . import _dispatch, ops
from ._checks import activation_index, flag, image, integer, number, pair, sequence, tensors
from .reference._parts import compute_dtype

__all__ = [
    "batch_norm_activation",
    "daspp",
    "depthwise_conv2d",
    "inverted_residual",
    "preprocess",
    "separable_conv2d",
    "separable_conv2d_classifier",
    "shuffle_unit",
    "upsample_argmax",
    "upsample_concat",
    "upsample_concat_separable_conv2d",
    "upsample_cross_entropy",
]

REDUCTIONS = ("mean", "sum", "sum_per_image", "none")

# op -> (place, name, whether it may be None) of its tensors
_TENSORS = {
    op: tuple(
        (place, argument.name, str(argument.type).startswith("Optional"))
        for place, argument in enumerate(getattr(torch.ops.liteseg, op).default._schema.arguments)
        if str(argument.type) in ("Tensor", "Optional[Tensor]")
    )
    for op in (*__all__, "upsample_cross_entropy_map")
}

# whether this thread only asks what would be called
_asked: ContextVar[bool] = ContextVar("liteseg_asked", default=False)


class _Told(Exception):
    """The answer: an op and its arguments."""

    def __init__(self, op: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(op)
        self.op, self.arguments = op, arguments


def _tell(op: str, *args: Any) -> None:
    """End here where `explain` asks. Compilers never do."""
    if not torch.compiler.is_compiling() and _asked.get():
        raise _Told(op, args)


def _call(op: str, *args: Any) -> Any:
    """The op on its own arguments. The dispatcher would refuse what is no tensor in its own words."""
    for place, name, optional in _TENSORS[op]:
        if not isinstance(args[place], Tensor) and not (optional and args[place] is None):
            said = op.removesuffix("_map")
            raise TypeError(f"{said}: {name}: expected a tensor, got {type(args[place]).__name__}")
    _tell(op, *args)
    return getattr(torch.ops.liteseg, op)(*args)


def _geometry(op: str, stride: Any, padding: Any, dilation: Any) -> tuple[list[int], list[int], list[int]]:
    return pair(op, "stride", stride, 1), pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)


def _activation(op: str, activation: str | None, negative_slope: float) -> tuple[int, float]:
    return activation_index(op, activation), number(op, "negative_slope", negative_slope)


def separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution, pointwise convolution, bias, residual, activation (paper, section III-B).

    Args:
        x: [N, C, H, W].
        depthwise_weight: [C, 1, kh, kw].
        pointwise_weight: [C_out, C, 1, 1].
        bias: [C_out], of the pointwise convolution.
        stride, padding, dilation: of the depthwise convolution, as torch.nn.functional.conv2d takes them.
        activation: None or a name in `activations`, such as "relu"; `negative_slope` is leaky_relu's.
        residual: [N, C_out, H', W'], added before the activation.

    Returns: [N, C_out, H', W']. The depthwise map is never stored. Differentiable once.
    """
    op = "separable_conv2d"
    geometry, ending = _geometry(op, stride, padding, dilation), _activation(op, activation, negative_slope)
    return _call(op, x, depthwise_weight, pointwise_weight, bias, residual, *geometry, *ending)


def separable_conv2d_classifier(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None,
    classifier_weight: Tensor,
    classifier_bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """`separable_conv2d`, then a 1x1 convolution to the classes: the end of LiteSeg's decoder (paper, section III-C).

    Args:
        x: [N, C, H, W].
        depthwise_weight: [C, 1, kh, kw].
        pointwise_weight, bias: [C_hidden, C, 1, 1] and [C_hidden].
        classifier_weight, classifier_bias: [K, C_hidden, 1, 1] and [K].
        stride, padding, dilation, activation, negative_slope: as separable_conv2d takes them.

    Returns: logits [N, K, H', W']. The CUDA kernel never stores the C_hidden-wide map; the other backends run the two
    convolutions one after another. Differentiable once; backward computes that map again.
    """
    op = "separable_conv2d_classifier"
    geometry, ending = _geometry(op, stride, padding, dilation), _activation(op, activation, negative_slope)
    classifier = (classifier_weight, classifier_bias)
    return _call(op, x, depthwise_weight, pointwise_weight, bias, *classifier, *geometry, *ending)


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_bias: Tensor | None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    activation: str | None = "relu6",
    negative_slope: float = 0.01,
    residual: bool = False,
) -> Tensor:
    """MobileNetV2 block: 1x1 expansion, depthwise convolution, linear 1x1 projection (Sandler et al. 2018).

    Args:
        x: [N, C, H, W].
        expand_weight, expand_bias: [E, C, 1, 1] and [E]; both None where the block has no expansion (E = C).
        depthwise_weight, depthwise_bias: [E, 1, k, k] with odd k, padded by dilation * (k - 1) / 2, and [E].
        project_weight, project_bias: [C_out, E, 1, 1] and [C_out].
        activation: after the first two convolutions.
        residual: add x to the output (stride 1 and C_out = C).

    Returns: [N, C_out, ceil(H / stride), ceil(W / stride)]. The E-wide maps are never stored. Differentiable once.
    """
    op = "inverted_residual"
    expand, project = (expand_weight, expand_bias), (project_weight, project_bias)
    depthwise = (depthwise_weight, depthwise_bias)
    strides = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    ending = _activation(op, activation, negative_slope)
    return _call(op, x, *expand, *depthwise, *project, *strides, *ending, flag(op, "residual", residual))


def shuffle_unit(
    x: Tensor,
    compress_weight: Tensor,
    compress_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    groups: int = 8,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    concat: bool = False,
) -> Tensor:
    """ShuffleNet v1 unit: grouped 1x1 + ReLU, channel shuffle, 3x3 depthwise, grouped 1x1, combination, ReLU.

    Args:
        x: [N, C, H, W].
        compress_weight, compress_bias: [B, C / groups_1, 1, 1] and [B]; its shape tells groups_1 (1 or `groups`).
        depthwise_weight, depthwise_bias: [B, 1, 3, 3], padded by the dilation, and [B].
        expand_weight, expand_bias: [D, B / groups, 1, 1] and [D].
        groups: of the shuffle and of the expansion.
        concat: put x, average-pooled 3x3 with the same stride, in front of the branch, instead of adding x.

    Returns: [N, D, H, W], or [N, C + D, H', W'] with `concat`. Differentiable once.
    """
    op = "shuffle_unit"
    compress, expand = (compress_weight, compress_bias), (expand_weight, expand_bias)
    depthwise = (depthwise_weight, depthwise_bias)
    counts = integer(op, "groups", groups), pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    return _call(op, x, *compress, *depthwise, *expand, *counts, flag(op, "concat", concat))


def daspp(
    x: Tensor,
    atrous: Sequence[Sequence[Tensor]],
    pool: Sequence[Tensor],
    project: Sequence[Tensor],
    *,
    rates: Sequence[int] = (3, 6, 9),
    deep: Sequence[Sequence[Tensor]] = (),
    direct_weight: Tensor | None = None,
    point: Sequence[Tensor] | None = None,
) -> Tensor:
    """Deeper atrous spatial pyramid pooling with its projection (paper, section III-A).

    Args:
        x: [N, C, H, W], the encoder's map.
        atrous: per rate (depthwise [C, 1, 3, 3], pointwise [F, C, 1, 1], bias [F]), padded by the rate.
        pool: (weight [F, C, 1, 1], bias [F]) of the globally averaged branch, ReLU after it.
        project: (weight [C_out, B * F, 1, 1], bias [C_out]) over the branches point (where given), atrous..., pool.
        rates: dilation of each atrous convolution.
        deep: per rate the second convolution (depthwise [F, 1, 3, 3], pointwise [F, F, 1, 1], bias [F]), ReLU after
            it; empty for the plain pyramid, whose atrous branches then end in ReLU themselves.
        direct_weight: [C_out, C, 1, 1], every linear path from x to the output: the short residual connection and, in
            the deeper pyramid, the 1x1 branch, which has no activation of its own.
        point: (weight [F, C, 1, 1], bias [F]) of a 1x1 branch with ReLU (the plain pyramid's).

    Returns: [N, C_out, H, W] after ReLU. Neither the branches nor their concatenation leave the op. Differentiable
    once.
    """
    op = "daspp"
    for name, branches in (("atrous", atrous), ("deep", deep)):
        for index, branch in enumerate(sequence(op, name, branches)):
            tensors(op, **{f"{name}[{index}][{part}]": w for part, w in enumerate(sequence(op, name, branch))})
        if any(len(branch) != 3 for branch in branches):
            raise ValueError(
                f"{op}: {name}: expected (depthwise, pointwise, bias) a rate, got {[len(b) for b in branches]} tensors"
            )
    for name, weights in (("pool", pool), ("project", project), ("point", point)):
        if weights is not None and len(sequence(op, name, weights)) != 2:
            raise ValueError(f"{op}: {name}: expected (weight, bias), got {len(weights)} tensors")
    dilations = [integer(op, "rates", rate) for rate in sequence(op, "rates", rates)]
    columns = [[branch[part] for branch in branches] for branches in (atrous, deep) for part in range(3)]
    points = (None, None) if point is None else point
    return _call(op, x, direct_weight, *points, *columns, *pool, *project, dilations)


def upsample_concat(x: Tensor, skip: Tensor, *, align_corners: bool = True) -> Tensor:
    """x [N, C1, h, w] resized bilinearly to skip's size, then skip [N, C2, H, W]: [N, C1 + C2, H, W] in skip's format.

    Differentiable once; the gradient is gathered in a fixed order, so it is deterministic. Paper, section III-C.
    """
    op = "upsample_concat"
    return _call(op, x, skip, flag(op, "align_corners", align_corners))


def upsample_concat_separable_conv2d(
    x: Tensor,
    skip: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    align_corners: bool = True,
) -> Tensor:
    """`separable_conv2d` of `upsample_concat(x, skip)`, the first layer of LiteSeg's decoder (paper, section III-C).

    Args:
        x: [N, C1, h, w], resized bilinearly to skip's size.
        skip: [N, C2, H, W].
        depthwise_weight: [C1 + C2, 1, kh, kw].
        pointwise_weight: [C_out, C1 + C2, 1, 1].
        bias: [C_out], of the pointwise convolution.
        stride, padding, dilation, activation, negative_slope: as separable_conv2d takes them.

    Returns: [N, C_out, H', W'] in skip's memory format. Neither the resized map nor the concatenation is kept for the
    gradient, and Triton's kernel does not store them in the forward pass either. Differentiable once.
    """
    op = "upsample_concat_separable_conv2d"
    geometry, ending = _geometry(op, stride, padding, dilation), _activation(op, activation, negative_slope)
    aligned = flag(op, "align_corners", align_corners)
    return _call(op, x, skip, depthwise_weight, pointwise_weight, bias, *geometry, *ending, aligned)


def upsample_argmax(logits: Tensor, size: int | Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Class of the largest bilinearly resized logit: logits [N, K, h, w] -> uint8 [N, H, W] for size (H, W).

    Ties go to the lowest class, NaN counts as largest (as torch.argmax has it). K is at most 256. Not differentiable.
    """
    op = "upsample_argmax"
    return _call(op, logits, pair(op, "size", size, 1), flag(op, "align_corners", align_corners))


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = True,
) -> Tensor:
    """Cross-entropy of bilinearly resized logits; the definition is torch.nn.functional.cross_entropy's.

    Args:
        logits: [N, K, h, w].
        target: [N, H, W], classes 0..K-1 or `ignore_index`; int64, int32 or uint8. Other values raise on the CPU; on a
            GPU, where looking would stop the stream, they make the loss NaN.
        weight: [K], factor of each class.
        reduction: "mean" over valid pixels (by weight), "sum", "sum_per_image" (sum / N, the authors' loss) or "none".

    Returns: a scalar, or [N, H, W] with "none"; float32 for half logits. Without a valid pixel the loss is 0 with zero
    gradients. Differentiable once.
    """
    op = "upsample_cross_entropy"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction: expected one of {REDUCTIONS}, got {reduction!r}")
    ignored, smoothing = integer(op, "ignore_index", ignore_index), number(op, "label_smoothing", label_smoothing)
    args = (logits, target, weight, ignored, smoothing, flag(op, "align_corners", align_corners))
    if reduction == "none":
        return _call(f"{op}_map", *args)
    losses, weights = _call(op, *args)
    if reduction == "mean":
        total = weights.sum()
        return losses.sum() / torch.where(total == 0, 1, total)
    return losses.sum() / max(logits.shape[0], 1) if reduction == "sum_per_image" else losses.sum()


def preprocess(
    image: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """uint8 pictures to a network's input: bilinear resize (half-pixel centres), / 255, minus mean, over std.

    Args:
        image: uint8 [H, W, C] or [N, H, W, C], values 0..255.
        size: (H', W') of the result; None keeps the picture's.
        mean, std: one number a channel, for values in 0..1.

    Returns: [N, C, H', W'] of `dtype`. Not differentiable.
    """
    op = "preprocess"
    tensors(op, image=image)
    if image.dim() == 3:
        image = image.unsqueeze(0)
    if image.dim() != 4:
        raise ValueError(f"{op}: image: expected [H, W, C] or [N, H, W, C], got {list(image.shape)}")
    target = list(image.shape[1:3] if size is None else pair(op, "size", size, 1))
    offset, spread = (
        [number(op, name, v) for v in sequence(op, name, values)] for name, values in (("mean", mean), ("std", std))
    )
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{op}: dtype: expected a floating dtype, got {dtype!r}")
    return _call(op, image, target, offset, spread, dtype, flag(op, "channels_last", channels_last))


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Convolution with one filter a channel, for training, where normalisation follows it.

    Args:
        x: [N, C, H, W].
        weight: [C, 1, kh, kw].
        stride, padding, dilation: as torch.nn.functional.conv2d takes them.

    Returns: [N, C, H', W']. Differentiable once.
    """
    op = "depthwise_conv2d"
    return _call(op, x, weight, *_geometry(op, stride, padding, dilation))


@torch.no_grad()
def _batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: Any,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of x over all processes; updates the running statistics."""
    count: Any = x.numel() // x.shape[1]
    mean, squares = torch.ops.liteseg.batch_norm_statistics(x)
    if process_group is not None:
        mean, squares, count = ops.batch_norm_activation.combine(mean, squares, count, process_group)
    elif count == 1:
        raise ValueError(
            f"batch_norm_activation: x: expected more than one value a channel to normalise by, got {list(x.shape)}"
        )
    elif count == 0:
        return mean, squares
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
    return mean, torch.rsqrt(squares / count + eps)


def batch_norm_activation(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    """Batch normalisation by the statistics of the batch (training), residual, activation (Ioffe and Szegedy 2015).

    Args:
        x: [N, C, H, W]. An empty batch is returned as it is; one value a channel raises, as in torch.
        running_mean, running_var: [C], updated in place where given.
        weight, bias: [C].
        momentum: share of the batch in the updated running statistics.
        activation: None or a name in `activations`, such as "relu"; `negative_slope` is leaky_relu's.
        residual: [N, C, H, W], added before the activation.
        process_group: torch.distributed group over which the statistics are combined (SyncBatchNorm), on any device.

    Returns: [N, C, H, W]. Sums are float32 (float64 of float64); neither the normalised map nor a mask is kept for
    backward. Differentiable once.
    """
    op = "batch_norm_activation"
    tensors(op, ("running_mean", "running_var"), x=x, running_mean=running_mean, running_var=running_var)
    image(op, "x", x)
    number(op, "momentum", momentum)
    number(op, "eps", eps)
    dtype = compute_dtype(x.dtype)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and list(running.shape) != [x.shape[1]]:
            raise ValueError(f"{op}: {name}: expected [{x.shape[1]}], got {list(running.shape)}")
    tensors(op, ("weight", "bias", "residual"), weight=weight, bias=bias, residual=residual)
    scale, shift = (None if tensor is None else tensor.to(dtype) for tensor in (weight, bias))
    group = "" if process_group is None else process_group.group_name
    rest = (scale, shift, residual, *_activation(op, activation, negative_slope), group)
    # with places for the statistics: wrong arguments must not reach the running ones
    mean, invstd = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    _tell(op, x, mean, invstd, *rest)
    ops.batch_norm_activation.check(x, mean, invstd, *rest)
    mean, invstd = _batch_statistics(x, running_mean, running_var, momentum, eps, process_group)
    return _call(op, x, mean, invstd, *rest)


def explain(op: str, *args: Any, **kwargs: Any) -> _dispatch.Explanation:
    """Which backend `functional.<op>(*args, **kwargs)` would run on, and why the others would not. Runs nothing.

    Wrong arguments raise as the op itself would.
    """
    if op not in __all__:
        raise ValueError(f"explain: op: expected one of {', '.join(__all__)}, got {op!r}")
    called: str = op
    arguments: tuple[Any, ...] = ()
    token = _asked.set(True)
    try:
        globals()[op](*args, **kwargs)
    except _Told as told:
        called, arguments = told.op, told.arguments
    finally:
        _asked.reset(token)
    getattr(ops, op).check(*arguments)
    return _dispatch.explain_call(called, arguments)
