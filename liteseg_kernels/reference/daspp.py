"""Reference of `daspp`: atrous pyramid, image pooling and projection with folded weights (paper, section III-A).

`direct_weight` carries every linear path from x to the projection: the short residual connection and, in the deeper
pyramid, the 1x1 branch, which has no activation. `project_weight` is the slice of the projection over the remaining
branches in the order point, atrous..., pool. The pooled branch is constant over the image, so it acts as a bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as tf

from .._layout import conform
from . import _parts as parts


class _Branches:
    """All that lies between x and the projection, kept for the backward pass."""

    def __init__(
        self,
        x: Tensor,
        point_weight: Tensor | None,
        point_bias: Tensor | None,
        atrous: Sequence[Sequence[Tensor]],
        deep: Sequence[Sequence[Tensor]],
        pool_weight: Tensor,
        pool_bias: Tensor,
        rates: Sequence[int],
    ) -> None:
        self.point = None if point_weight is None else tf.relu(parts.convolution(x, point_weight, point_bias))
        # per rate: (depthwise map, branch) of the atrous and of the second convolution
        self.atrous: list[tuple[Tensor, Tensor]] = []
        self.deep: list[tuple[Tensor, Tensor]] = []
        for index, ((depthwise, pointwise, bias), rate) in enumerate(zip(atrous, rates, strict=True)):
            between = parts.convolution(x, depthwise, None, (1, 1), (rate, rate), (rate, rate), x.shape[1])
            branch = parts.convolution(between, pointwise, bias)
            self.atrous.append((between, branch if deep else tf.relu(branch)))
            if deep:
                depthwise, pointwise, bias = deep[index]
                between = parts.convolution(branch, depthwise, None, (1, 1), (1, 1), (1, 1), branch.shape[1])
                self.deep.append((between, tf.relu(parts.convolution(between, pointwise, bias))))
        self.mean = x.mean((2, 3), keepdim=True)
        self.pool = tf.relu(parts.convolution(self.mean, pool_weight, pool_bias))

    def maps(self) -> list[Tensor]:
        return [*(() if self.point is None else (self.point,)), *(branch for _, branch in self.deep or self.atrous)]


def forward(
    x: Tensor,
    direct_weight: Tensor | None,
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
    dtype = parts.compute_dtype(x.dtype)
    source, direct, w_point, b_point, w_pool, b_pool, w_project, b_project = parts.up(
        dtype,
        *(x, direct_weight, point_weight, point_bias, pool_weight, pool_bias, project_weight, project_bias),
    )
    atrous = [parts.up(dtype, *p) for p in zip(atrous_depthwise, atrous_pointwise, atrous_bias, strict=True)]
    deep = [parts.up(dtype, *p) for p in zip(deep_depthwise, deep_pointwise, deep_bias, strict=True)]
    branches = _Branches(source, w_point, b_point, atrous, deep, w_pool, b_pool, rates)
    filters = w_pool.shape[0]
    z = parts.convolution(torch.cat(branches.maps(), 1), w_project[:, :-filters], b_project)
    z = z + parts.convolution(branches.pool, w_project[:, -filters:])
    if direct is not None:
        z = z + parts.convolution(source, direct)
    return conform(tf.relu(z).to(x.dtype), x)


def backward(
    grad: Tensor,
    x: Tensor,
    direct_weight: Tensor | None,
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
    output: Tensor,
    rates: Sequence[int],
) -> list[Tensor]:
    """Gradients of x and of every weight and bias given, in the order of the arguments."""
    dtype = parts.compute_dtype(x.dtype)
    grad, source, direct, w_point, b_point, w_pool, b_pool, w_project = parts.up(
        dtype, *(grad, x, direct_weight, point_weight, point_bias, pool_weight, pool_bias, project_weight)
    )
    atrous = [parts.up(dtype, *p) for p in zip(atrous_depthwise, atrous_pointwise, atrous_bias, strict=True)]
    deep = [parts.up(dtype, *p) for p in zip(deep_depthwise, deep_pointwise, deep_bias, strict=True)]
    branches = _Branches(source, w_point, b_point, atrous, deep, w_pool, b_pool, rates)
    filters = w_pool.shape[0]

    grad_z = parts.activation_gradient(grad, output, parts.RELU)
    maps = branches.maps()
    grad_concat, grad_project = parts.convolution_gradient(grad_z, torch.cat(maps, 1), w_project[:, :-filters])
    grad_maps = list(grad_concat.split([m.shape[1] for m in maps], 1))

    # the pooled branch was broadcast over the image, so its gradient is the sum over the image
    grad_pool, grad_project_pool = parts.convolution_gradient(
        grad_z.sum((2, 3), keepdim=True), branches.pool, w_project[:, -filters:]
    )
    grad_pool = parts.activation_gradient(grad_pool, branches.pool, parts.RELU)
    grad_mean, grad_w_pool = parts.convolution_gradient(grad_pool, branches.mean, w_pool)
    grad_x = (grad_mean / (x.shape[2] * x.shape[3])).expand_as(source)

    lead: list[Tensor] = []
    if direct is not None:
        grad_source, grad_direct = parts.convolution_gradient(grad_z, source, direct)
        grad_x = grad_x + grad_source
        lead.append(grad_direct)
    if w_point is not None:
        grad_point = parts.activation_gradient(grad_maps.pop(0), maps[0], parts.RELU)
        grad_source, grad_w_point = parts.convolution_gradient(grad_point, source, w_point)
        grad_x = grad_x + grad_source
        lead += [grad_w_point, parts.bias_gradient(grad_point)]

    grad_atrous: list[tuple[Tensor, Tensor, Tensor]] = []
    grad_deep: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, rate in enumerate(rates):
        between, branch = branches.atrous[index]
        grad_branch = grad_maps[index]
        if deep:
            deep_between, deep_branch = branches.deep[index]
            grad_branch = parts.activation_gradient(grad_branch, deep_branch, parts.RELU)
            grad_deep_bias = parts.bias_gradient(grad_branch)
            grad_between, grad_pointwise = parts.convolution_gradient(grad_branch, deep_between, deep[index][1])
            grad_branch, grad_depthwise = parts.convolution_gradient(
                grad_between, branch, deep[index][0], (1, 1), (1, 1), (1, 1), branch.shape[1]
            )
            grad_deep.append((grad_depthwise, grad_pointwise, grad_deep_bias))
        else:
            grad_branch = parts.activation_gradient(grad_branch, branch, parts.RELU)
        grad_between, grad_pointwise = parts.convolution_gradient(grad_branch, between, atrous[index][1])
        grad_source, grad_depthwise = parts.convolution_gradient(
            grad_between, source, atrous[index][0], (1, 1), (rate, rate), (rate, rate), x.shape[1]
        )
        grad_x = grad_x + grad_source
        grad_atrous.append((grad_depthwise, grad_pointwise, parts.bias_gradient(grad_branch)))

    gradients = [
        *lead,
        *(g[part] for part in range(3) for g in grad_atrous),
        *(g[part] for part in range(3) for g in grad_deep),
        *(grad_w_pool, parts.bias_gradient(grad_pool)),
        *(torch.cat((grad_project, grad_project_pool), 1), parts.bias_gradient(grad_z)),
    ]
    return [conform(grad_x.to(x.dtype), x), *(g.to(x.dtype).contiguous() for g in gradients)]
