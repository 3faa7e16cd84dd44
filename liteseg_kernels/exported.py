"""Exported programs that call this library's ops, for processes without the rest of it.

`torch.export` of a fused network records `liteseg::<op>`. With Python, `import liteseg_kernels` is what such a program
needs; a C++ program loads the compiled library and calls its `liteseg_register_ops` (csrc/torch/ops.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

NAMESPACE = "liteseg"


def _upsample_concat_separable_conv2d(x: Tensor, skip: Tensor, *args: Any) -> Tensor:
    depthwise_weight, pointwise_weight, bias, *geometry, align_corners = args
    whole = torch.ops.liteseg.upsample_concat(x, skip, align_corners)
    return torch.ops.liteseg.separable_conv2d(whole, depthwise_weight, pointwise_weight, bias, None, *geometry)


def _separable_conv2d_classifier(x: Tensor, *args: Any) -> Tensor:
    depthwise_weight, pointwise_weight, bias, classifier_weight, classifier_bias, *geometry = args
    hidden = torch.ops.liteseg.separable_conv2d(x, depthwise_weight, pointwise_weight, bias, None, *geometry)
    return tf.conv2d(hidden, classifier_weight, classifier_bias)


# ops that no compiled CPU kernel computes as a whole
_PARTS: dict[str, Callable[..., Tensor]] = {
    "upsample_concat_separable_conv2d": _upsample_concat_separable_conv2d,
    "separable_conv2d_classifier": _separable_conv2d_classifier,
}


def in_parts(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with every op that has no compiled CPU kernel of its own as those that have."""
    return program.run_decompositions({getattr(torch.ops.liteseg, op).default: run for op, run in _PARTS.items()})


def ops_of(program: torch.export.ExportedProgram) -> list[str]:
    """The names of the ops of this library that the program calls, without repeats."""
    called = (node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return sorted({target.name().split("::")[1] for target in called if target.namespace == NAMESPACE})
