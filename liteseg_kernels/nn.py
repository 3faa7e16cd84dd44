"""Drop-in `torch.nn` modules whose work is done by the fused ops of this library.

Every module keeps ordinary parameters in ordinary sub-modules (`Conv2d`, `BatchNorm2d`), so its `state_dict` is that of
the torch.nn composition it stands for, whichever backend runs it. Three ways of running it:

* training: convolutions and batch normalisation stay apart (batch statistics are needed between them), each by the
  kernel that is fastest, with activation and residual fused into the normalisation;
* eval: the fused op runs, with batch normalisation folded into the convolution before it;
* after `fuse`: the same, with the folded weights computed once and kept in non-persistent buffers.

`to_reference` switches a copy to the plain torch.nn composition (for export, profiling by hooks, and tests).
Shapes are NCHW throughout; sizes as torch.nn.Conv2d takes them.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf
from torch.nn.modules.batchnorm import _BatchNorm

from . import _loader, activations, intact
from . import functional as lf
from .block import FusedModule, Weights
from .plan import Program, Unplannable

__all__ = [
    "ConvNormAct",
    "DASPP",
    "InvertedResidual",
    "SeparableConv2d",
    "ShuffleUnit",
    "UpsampleArgmax",
    "UpsampleConcat",
    "UpsampleCrossEntropyLoss",
]


def _activation_module(name: str | None, negative_slope: float) -> nn.Module:
    return activations.TABLE[activations.index_of(name)].make(negative_slope)


_RELU = nn.ReLU()


def _geometry(conv: Any) -> dict[str, Any]:
    return {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}


# where batch normalisation in training has a kernel of this library; elsewhere torch.nn's own modules run
_NORMALISES = {
    "cpu": _loader.missing("cpu") is None,
    "cuda": importlib.util.find_spec("triton") is not None,
}


def _process_group(norm: nn.Module) -> Any:
    """The processes whose statistics are combined, or None."""
    if not isinstance(norm, nn.SyncBatchNorm) or not torch.distributed.is_available():
        return None
    if not torch.distributed.is_initialized():
        return None
    group: Any = norm.process_group or torch.distributed.group.WORLD
    return group if group.size() > 1 else None


def _normalise(
    norm: nn.Module | None,
    x: Tensor,
    activation: nn.Module,
    options: dict[str, Any],
    residual: Tensor | None = None,
    fused: bool = True,
) -> Tensor:
    """Normalisation, residual and activation (`options` are functional.batch_norm_activation's for it).

    `fused`: in training by one op, for which both modules must be plain.
    """
    if isinstance(norm, _BatchNorm) and norm.training:
        single = x.size(0) * x.size(2) * x.size(3) == 1
        fused = (
            fused
            and not single
            and _NORMALISES.get(x.device.type, False)
            and (residual is None or residual.dtype == x.dtype)
        )
        if fused:
            momentum = norm.momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
                if momentum is None:
                    momentum = 1.0 / float(norm.num_batches_tracked)
            return lf.batch_norm_activation(
                x,
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
                momentum=momentum or 0.0,
                eps=norm.eps,
                residual=residual,
                process_group=_process_group(norm),
                **options,
            )
        if single and isinstance(norm, nn.BatchNorm2d):
            # one value a channel has no variance (the pooled branch at batch 1): the running statistics stand in
            if torch.compiler.is_compiling():
                # compilers do not see through a copied module
                state = norm.running_mean, norm.running_var, norm.weight, norm.bias
                x, norm = tf.batch_norm(x, *state, training=norm.running_mean is None, eps=norm.eps), None
            else:
                norm = copy.copy(norm)
                norm.training = False
    if norm is not None:
        x = norm(x)
    return activation(x if residual is None else residual + x)


def _by_one_op(block: Any) -> bool:
    """Whether one op may take the statistics of a batch, normalise by them and activate, at the end of `block`."""
    return block.norm is not None and block.norm.training and _plain_norm(block)


@intact.constant_about
def _plain_norm(block: Any) -> bool:
    """Whether normalisation and activation at the end of `block` are what it was built with."""
    reason = intact.environment() or intact.norm(block.norm, "norm")
    return (reason or intact.activation(block.activation, "activation", **block._activation_args)) is None


def _convolve(conv: Any, x: Tensor, fused: bool = True) -> Tensor:
    """A convolution by its module, or by this library's kernel where it is depthwise and on the CPU."""
    # most are not even near to it, and asking takes longer
    grouped = fused and type(conv) is nn.Conv2d and conv.groups > 1 and conv.kernel_size != (1, 1)
    if grouped and x.device.type == "cpu" and _NORMALISES["cpu"] and x.is_floating_point():
        if intact.depthwise(conv, "conv", bias=None) is None:
            weight, stride, padding, dilation = (getattr(conv, n) for n in ("weight", "stride", "padding", "dilation"))
            return lf.depthwise_conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
    return conv(x)


def _fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the normalisation behind it folded in, in the weight's dtype."""
    if norm is None:
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias
    # BatchNorm2d, SyncBatchNorm and relatives
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise TypeError(f"fuse: norm: expected a BatchNorm2d or SyncBatchNorm with running statistics, got {norm}")
    assert norm.running_var is not None
    # few operations: modules that are not fused do this at every call
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    mean = norm.running_mean.to(dtype)
    if bias is not None:
        mean = mean - bias.to(dtype)
    if norm.affine:
        scale = scale * norm.weight.to(dtype)
        b = norm.bias.to(dtype) - mean * scale
    else:
        b = -mean * scale
    w = weight.to(dtype) * scale.view(-1, 1, 1, 1)
    return w.to(weight.dtype), b.to(weight.dtype)


class ConvNormAct(FusedModule):
    """Convolution -> batch normalisation -> activation, run by PyTorch's own convolution.

    `fuse` folds the normalisation into the convolution. Input [N, in_channels, H, W], output
    [N, out_channels, H', W'] with torch.nn.Conv2d's size rule. `padding=None` keeps the size at stride 1. `residual`
    is added before the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        *,
        bias: bool = False,
        norm: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if padding is None:
            high, wide = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            padding = (dilation * (high - 1) // 2, dilation * (wide - 1) // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum) if norm else None
        self.activation = _activation_module(activation, negative_slope)
        self._activation_args: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}

    def alteration(self) -> str | None:
        return (
            intact.convolution(self.conv, "conv")
            or intact.norm(self.norm, "norm")
            or intact.activation(self.activation, "activation", **self._activation_args)
        )

    def _fold(self) -> Weights:
        weight, bias = _fold_norm(self.conv.weight, self.conv.bias, self.norm)
        return {"weight": weight, "bias": bias}

    def lower(self, program: Program, x: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        return program.convolution(x, **self.folded(), **_geometry(self.conv), **self._activation_args)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not (self.fused and self.is_intact()):
            fused = not self.plain
            y = _convolve(self.conv, x, fused)
            fused = fused and _by_one_op(self)
            return _normalise(self.norm, y, self.activation, self._activation_args, residual, fused)
        weights = self.folded()
        conv: Any = self.conv
        y = tf.conv2d(x, weights["weight"], weights["bias"], conv.stride, conv.padding, conv.dilation, conv.groups)
        return self.activation(y if residual is None else residual + y)


class SeparableConv2d(FusedModule):
    """Depthwise k x k convolution, then pointwise convolution, with nothing between (paper, section III-B).

    Args:
        kernel_size, stride, dilation: of the depthwise convolution. `padding=None` means
            `dilation * (kernel_size - 1) // 2`, which keeps the size at stride 1.
        norm: batch normalisation after the pointwise convolution (folded into it in eval).
        activation: None or a name in `activations`, such as "relu", applied last; `negative_slope` is leaky_relu's.
        bias: bias of the pointwise convolution.

    Shape: [N, in_channels, H, W] -> [N, out_channels, H', W'], any floating dtype, NCHW or channels_last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        *,
        norm: bool = True,
        activation: str | None = None,
        bias: bool = False,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.activation = _activation_module(activation, negative_slope)
        self._activation_args: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}

    def alteration(self) -> str | None:
        return (
            intact.depthwise(self.depthwise, "depthwise", bias=None)
            or intact.pointwise(self.pointwise, "pointwise", groups=1)
            or intact.norm(self.norm, "norm")
            or intact.activation(self.activation, "activation", **self._activation_args)
        )

    def _fold(self) -> Weights:
        weight, bias = _fold_norm(self.pointwise.weight, self.pointwise.bias, self.norm)
        return {"depthwise_weight": self.depthwise.weight, "pointwise_weight": weight, "bias": bias}

    def lower(self, program: Program, x: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        return program.separable(x, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """Weights and settings as functional.separable_conv2d takes them."""
        geometry = _geometry(self.depthwise)
        del geometry["groups"]
        return {**self.folded(), **geometry, **self._activation_args}

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.is_intact():
            fused = not self.plain
            y = self.pointwise(_convolve(self.depthwise, x, fused))
            fused = fused and _by_one_op(self)
            return _normalise(self.norm, y, self.activation, self._activation_args, fused=fused)
        return lf.separable_conv2d(x, **self._arguments())

    def _joins(self) -> bool:
        """Whether it may be part of an op, without being called."""
        return not self.training and intact.altered(self, "", SeparableConv2d) is None and self.is_intact()

    def forward_concat(self, x: Tensor, skip: Tensor, concat: UpsampleConcat) -> Tensor:
        """`forward(concat(x, skip))`; in eval as one op, for which neither map between is stored."""
        if self._joins() and intact.altered(concat, "concat", UpsampleConcat) is None:
            return lf.upsample_concat_separable_conv2d(x, skip, **self._arguments(), align_corners=concat.align_corners)
        return self(concat(x, skip))

    def forward_classifier(self, x: Tensor, classifier: nn.Module) -> Tensor:
        """`classifier(forward(x))`; with a 1x1 convolution in eval as one op, for which the map between is not kept."""
        if self._joins() and intact.pointwise(classifier, "classifier", groups=1) is None:
            weights: dict[str, Any] = {"classifier_weight": classifier.weight, "classifier_bias": classifier.bias}
            return lf.separable_conv2d_classifier(x, **self._arguments(), **weights)
        return classifier(self(x))


def _part(part: Any, name: str, conv: Callable[..., str | None], activation: str | None, **geometry: Any) -> str | None:
    """Why `part` is no ConvNormAct with this activation and a convolution for which `conv` gives None."""
    reason = intact.altered(part, name, ConvNormAct)
    if reason is None:
        reason = intact.inside(name, part.alteration() or conv(part.conv, "conv", **geometry))
    if reason is None and part._activation_args["activation"] != activation:
        reason = f"{name}: expected the activation {activation}, got {part._activation_args['activation']}"
    return reason


@intact.constant_about
def _adds(block: Any, name: str) -> bool:
    """Whether in training the block's input may be added to what its part of this name normalises, as one op."""
    return not block.plain and _part(getattr(block, name), name, intact.convolution, None) is None


class InvertedResidual(FusedModule):
    """MobileNetV2 block: 1x1 expansion, 3x3 depthwise, linear 1x1 projection, normalised, ReLU6 after the first two.

    `activation` takes ReLU6's place. The input is added to the output when stride is 1 and the channel counts agree,
    unless `residual=False`.
    `expand_ratio=1` has no expansion.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        *,
        dilation: int = 1,
        residual: bool = True,
        activation: str | None = "relu6",
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.activation = activation
        self.expand = ConvNormAct(in_channels, hidden, 1, activation=activation) if expand_ratio != 1 else None
        self.depthwise = ConvNormAct(
            hidden, hidden, 3, stride, dilation, dilation, groups=hidden, activation=activation
        )
        self.project = ConvNormAct(hidden, out_channels, 1)
        self.residual = residual and stride == 1 and in_channels == out_channels

    def alteration(self) -> str | None:
        known, expand = self.activation, self.expand
        reason = None if expand is None else _part(expand, "expand", intact.pointwise, known, groups=1)
        return (
            reason
            or _part(self.depthwise, "depthwise", intact.depthwise, known)
            or intact.inside("depthwise", intact.same_size(self.depthwise.conv, "conv"))
            or _part(self.project, "project", intact.pointwise, None, groups=1)
        )

    def _fold(self) -> Weights:
        weights: Weights = {"expand_weight": None, "expand_bias": None}
        for name in ("expand", "depthwise", "project"):
            part = getattr(self, name)
            if part is not None:
                weight, bias = _fold_norm(part.conv.weight, part.conv.bias, part.norm)
                weights |= {f"{name}_weight": weight, f"{name}_bias": bias}
        return weights

    def lower(self, program: Program, x: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        conv: Any = self.depthwise.conv
        geometry = {"stride": conv.stride, "dilation": conv.dilation, "residual": self.residual}
        return program.inverted_residual(x, self.folded(), **geometry, activation=self.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.is_intact():
            hidden = self.depthwise(x if self.expand is None else self.expand(x))
            if not self.residual:
                return self.project(hidden)
            if self.training and _adds(self, "project"):
                return self.project(hidden, x)
            return x + self.project(hidden)
        conv: Any = self.depthwise.conv
        geometry = {"stride": conv.stride, "dilation": conv.dilation, "residual": self.residual}
        return lf.inverted_residual(x, **self.folded(), **geometry, activation=self.activation)


class ShuffleUnit(FusedModule):
    """ShuffleNet v1 unit: grouped 1x1, channel shuffle, 3x3 depthwise, grouped 1x1, combined with the input, ReLU.

    `combine="add"` adds the input; `combine="concat"` puts the 3x3 average-pooled input (stride as the depthwise's)
    in front of the branch, which then has `out_channels - in_channels` channels. The maps between have `bottleneck`
    channels, a quarter of `out_channels` unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 8,
        first_groups: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        combine: str = "add",
        bottleneck: int | None = None,
    ) -> None:
        super().__init__()
        if combine not in ("add", "concat"):
            raise ValueError(f"ShuffleUnit: combine: expected 'add' or 'concat', got {combine!r}")
        if combine == "add" and stride != 1:
            raise ValueError(f"ShuffleUnit: stride: expected 1 with combine='add', got {stride}")
        if combine == "add" and in_channels != out_channels:
            raise ValueError(
                f"ShuffleUnit: in_channels: expected {out_channels}, as many as out_channels, with combine='add', "
                f"got {in_channels}"
            )
        if bottleneck is None:
            bottleneck = out_channels // 4
        branch = out_channels - in_channels if combine == "concat" else out_channels
        self.groups, self.stride, self.combine = groups, stride, combine
        self.compress = ConvNormAct(
            in_channels, bottleneck, 1, groups=first_groups or groups, bias=True, activation="relu"
        )
        self.depthwise = ConvNormAct(
            bottleneck, bottleneck, 3, stride, dilation, dilation, groups=bottleneck, bias=True
        )
        self.expand = ConvNormAct(bottleneck, branch, 1, groups=groups, bias=True)

    def alteration(self) -> str | None:
        geometry = {"kernel_size": (3, 3), "stride": (self.stride, self.stride)}
        return (
            _part(self.compress, "compress", intact.pointwise, "relu")
            or _part(self.depthwise, "depthwise", intact.depthwise, None, **geometry)
            or intact.inside("depthwise", intact.same_size(self.depthwise.conv, "conv"))
            or _part(self.expand, "expand", intact.pointwise, None, groups=self.groups)
        )

    def _fold(self) -> Weights:
        weights: Weights = {}
        for name in ("compress", "depthwise", "expand"):
            part = getattr(self, name)
            weight, bias = _fold_norm(part.conv.weight, part.conv.bias, part.norm)
            weights |= {f"{name}_weight": weight, f"{name}_bias": bias}
        return weights

    def lower(self, program: Program, x: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        conv: Any = self.depthwise.conv
        return program.shuffle_unit(
            x,
            self.folded(),
            groups=self.groups,
            stride=conv.stride,
            dilation=conv.dilation,
            concat=self.combine == "concat",
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.is_intact():
            conv: Any = self.depthwise.conv
            return lf.shuffle_unit(
                x,
                **self.folded(),
                groups=self.groups,
                stride=conv.stride,
                dilation=conv.dilation,
                concat=self.combine == "concat",
            )
        shuffled = self.depthwise(tf.channel_shuffle(self.compress(x), self.groups))
        if self.combine == "concat":
            return tf.relu(torch.cat((tf.avg_pool2d(x, 3, self.stride, 1), self.expand(shuffled)), 1))
        if self.training and _adds(self, "expand"):
            expanded = self.expand.conv(shuffled)
            return _normalise(self.expand.norm, expanded, _RELU, {"activation": "relu"}, x)
        return tf.relu(x + self.expand(shuffled))


def _fold_separable_point(module: Any) -> tuple[Tensor, Tensor]:
    """A 1x1 separable convolution and its normalisation as one dense 1x1 convolution, in float64."""
    weight = module.pointwise.weight.double() * module.depthwise.weight.double().view(1, -1, 1, 1)
    return _fold_norm(weight, module.pointwise.bias, module.norm)


def _branch(branch: Any, name: str, activation: str | None, **geometry: Any) -> str | None:
    """Why `branch` is no SeparableConv2d of stride 1, without a bias, with this activation and depthwise geometry."""
    reason = intact.altered(branch, name, SeparableConv2d)
    if reason is None:
        geometry = {"kernel_size": (3, 3), "stride": (1, 1)} | geometry
        reason = intact.inside(
            name,
            branch.alteration()
            or intact.depthwise(branch.depthwise, "depthwise", **geometry)
            or intact.convolution(branch.pointwise, "pointwise", bias=None),
        )
    if reason is None and branch._activation_args["activation"] != activation:
        reason = f"{name}: expected the activation {activation}, got {branch._activation_args['activation']}"
    return reason


class DASPP(FusedModule):
    """Deeper atrous spatial pyramid pooling (paper, section III-A): one 1x1 branch, one atrous branch a rate, each
    followed by a second 3x3 convolution, image pooling, and the input itself, fused by a 1x1 convolution.

    `deeper=False` leaves out the second convolutions (DeepLabv3+'s ASPP, ReLU after every branch),
    `short_residual=False` leaves the input out of the concatenation, `separable=False` uses dense convolutions.
    Shape: [N, in_channels, H, W] -> [N, filters, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        filters: int = 96,
        rates: Sequence[int] = (3, 6, 9),
        *,
        deeper: bool = True,
        separable: bool = True,
        short_residual: bool = True,
    ) -> None:
        super().__init__()
        if not rates or min(rates) < 1:
            raise ValueError(f"DASPP: rates: expected one or more rates of at least 1, got {tuple(rates)}")
        block = SeparableConv2d if separable else ConvNormAct
        branch_activation = None if deeper else "relu"
        self.rates = tuple(rates)
        self.separable = separable
        self.short_residual = short_residual
        self.point = block(in_channels, filters, 1, activation=branch_activation)
        self.atrous = nn.ModuleList(
            block(in_channels, filters, 3, dilation=rate, activation=branch_activation) for rate in self.rates
        )
        self.deep = nn.ModuleList(block(filters, filters, 3, activation="relu") for _ in self.rates if deeper)
        self.pool = ConvNormAct(in_channels, filters, 1, activation="relu")
        concatenated = (len(self.rates) + 2) * filters + (in_channels if short_residual else 0)
        self.project = block(concatenated, filters, 1, activation="relu")
        # the paper's code draws these from Kaiming's normal distribution, all other convolutions from torch's default
        for part in (self.point, *self.atrous, *self.deep):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    @property
    def folds(self) -> bool:  # type: ignore[override]
        return self.separable

    def alteration(self) -> str | None:
        if not self.separable:
            return "expected separable convolutions, got dense ones"
        if len(self.atrous) != len(self.rates) or len(self.deep) not in (0, len(self.rates)):
            return f"atrous, deep: expected {len(self.rates)} each, got {len(self.atrous)} and {len(self.deep)}"
        first = None if len(self.deep) else "relu"
        reason = (
            _branch(self.point, "point", first, kernel_size=(1, 1), padding=(0, 0))
            or _part(self.pool, "pool", intact.pointwise, "relu", groups=1)
            or _branch(self.project, "project", "relu", kernel_size=(1, 1), padding=(0, 0))
        )
        for index, rate in enumerate(self.rates):
            reason = reason or _branch(
                self.atrous[index], f"atrous.{index}", first, padding=(rate, rate), dilation=(rate, rate)
            )
        for index, deep in enumerate(self.deep):
            reason = reason or _branch(deep, f"deep.{index}", "relu", padding=(1, 1), dilation=(1, 1))
        return reason

    def _fold(self) -> Weights:
        """Weights of `functional.daspp`. Exact algebra in eval (float64, then rounded once): the 1x1 branch of the
        deeper pyramid has no activation, so it and the short residual connection are one linear map of x."""
        channels, filters, deeper = self.pool.conv.in_channels, self.pool.conv.out_channels, len(self.deep) > 0
        project, shift = _fold_separable_point(self.project)
        source, point, branches, pool = project.split(
            [channels if self.short_residual else 0, filters, len(self.rates) * filters, filters], 1
        )
        direct = source if self.short_residual else None
        point_weight, point_bias = _fold_separable_point(self.point)
        weights: Weights = {}
        if deeper:
            linear = torch.einsum("ofhw,fchw->ochw", point, point_weight)
            direct = linear if direct is None else direct + linear
            shift = shift + point.flatten(1) @ point_bias
            project = torch.cat((branches, pool), 1)
        else:
            project = torch.cat((point, branches, pool), 1)
            weights |= {"point_weight": point_weight, "point_bias": point_bias}
        weights |= {"direct_weight": direct, "project_weight": project, "project_bias": shift}
        pool_weight, pool_bias = _fold_norm(self.pool.conv.weight, self.pool.conv.bias, self.pool.norm)
        weights |= {"pool_weight": pool_weight, "pool_bias": pool_bias}
        for name, convolutions in (("atrous", self.atrous), ("deep", self.deep)):
            convolution: Any
            for index, convolution in enumerate(convolutions):
                weight, bias = _fold_norm(convolution.pointwise.weight, None, convolution.norm)
                weights |= {
                    f"{name}_depthwise_{index}": convolution.depthwise.weight,
                    f"{name}_pointwise_{index}": weight,
                    f"{name}_bias_{index}": bias,
                }
        dtype = self.pool.conv.weight.dtype
        return {name: None if weight is None else weight.to(dtype) for name, weight in weights.items()}

    def _arguments(self) -> dict[str, Any]:
        """The folded weights as functional.daspp takes them."""
        w = self.folded()
        branches = {
            name: [
                tuple(w[f"{name}_{part}_{index}"] for part in ("depthwise", "pointwise", "bias"))
                for index in range(count)
            ]
            for name, count in (("atrous", len(self.atrous)), ("deep", len(self.deep)))
        }
        return {
            **branches,
            "pool": (w["pool_weight"], w["pool_bias"]),
            "project": (w["project_weight"], w["project_bias"]),
            "rates": self.rates,
            "direct_weight": w["direct_weight"],
            "point": None if len(self.deep) else (w["point_weight"], w["point_bias"]),
        }

    def lower(self, program: Program, x: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        if not self.separable:
            raise Unplannable("dense convolutions in the pyramid")
        return program.daspp(x, **self._arguments())

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.is_intact():
            return lf.daspp(x, **self._arguments())
        branches = [self.point(x)]
        for i, atrous in enumerate(self.atrous):
            branch = atrous(x)
            branches.append(self.deep[i](branch) if len(self.deep) else branch)
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.size(2), x.size(3))
        if x.is_contiguous(memory_format=torch.channels_last):
            # an expanded map has no memory format, and one such map makes cat's output NCHW
            pooled = pooled.contiguous(memory_format=torch.channels_last)
        return self.project(torch.cat((*((x,) if self.short_residual else ()), *branches, pooled), 1))


class UpsampleConcat(FusedModule):
    """`forward(x, skip)`: x bilinearly resized to skip's height and width, then skip, along the channels.

    Shape: [N, C1, h, w] and [N, C2, H, W] -> [N, C1 + C2, H, W] (paper, section III-C).
    """

    folds = False

    def __init__(self, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners

    def lower(self, program: Program, x: int, skip: int) -> int:
        """Add this module to a plan (`plan.Program`)."""
        return program.upsample(x, skip, concat=True, align_corners=self.align_corners)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.plain:
            up = tf.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=self.align_corners)
            return torch.cat((up, skip), 1)
        return lf.upsample_concat(x, skip, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}"


class UpsampleArgmax(FusedModule):
    """`forward(logits, size)`: class of the largest bilinearly resized logit, uint8 [N, H, W] for size (H, W).

    The full-size logits are never stored.
    """

    folds = False

    def __init__(self, align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if self.plain:
            up = tf.interpolate(logits, tuple(size), mode="bilinear", align_corners=self.align_corners)
            return up.argmax(1).to(torch.uint8)
        return lf.upsample_argmax(logits, size, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}"


class UpsampleCrossEntropyLoss(nn.Module):
    """Cross-entropy of bilinearly resized logits [N, K, h, w] against targets [N, H, W].

    Arguments as torch.nn.CrossEntropyLoss has them, and `reduction="sum_per_image"` (the sum over pixels divided by
    the batch size, the authors' loss). Without a valid pixel the loss is 0. See `functional.upsample_cross_entropy`.
    """

    weight: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        weight: Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if reduction not in lf.REDUCTIONS:
            raise ValueError(f"UpsampleCrossEntropyLoss: reduction: expected one of {lf.REDUCTIONS}, got {reduction!r}")
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing, self.align_corners = label_smoothing, align_corners
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return lf.upsample_cross_entropy(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}, align_corners={self.align_corners}"
        )
