"""Gradients that nobody asked for change none of the others: each input alone against all of them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from .suite import enter, flatten, inputs, lk, rounded, worlds_of

# and the op whose kernel computes their gradients
OPS = {
    "batch_norm_activation": "batch_norm_activation_backward",
    "depthwise_conv2d": "depthwise_conv2d_backward",
    "inverted_residual": "inverted_residual_backward",
    "separable_conv2d": "separable_conv2d_backward",
    "separable_conv2d_classifier": "separable_conv2d_backward",
    "shuffle_unit": "shuffle_unit_backward",
    "upsample_concat": "upsample_concat_backward",
    "upsample_concat_separable_conv2d": "upsample_concat_separable_conv2d_backward",
}
ROWS = [
    pytest.param(op, world, id=f"{world}-{op}", marks=[pytest.mark.gpu] if world.startswith("gpu") else [])
    for op, backward in OPS.items()
    for world in worlds_of(op)
    if world != "reference" and world in worlds_of(backward)
]


def gradients(op: str, given: dict[str, Any], options: dict[str, Any], wanted: list[str]) -> list[Tensor]:
    leaves = dict(flatten(given))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wanted)
    out = getattr(lk.functional, op)(**given, **options)
    upstream = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return list(torch.autograd.grad(out, [leaves[name] for name in wanted], upstream))


@pytest.mark.parametrize(("op", "world"), ROWS)
def test_each_alone(op: str, world: str) -> None:
    module = importlib.import_module(f"tests.kernels.test_{op}")
    cases = [case for case in module.CASES if not (case.slow or case.wide)]
    with enter(world) as here:
        for case in cases[: 6 if here.name == "cpu" else 2]:
            tensors = rounded(case.make(torch.Generator().manual_seed(0)), torch.float32)
            given = inputs(tensors, here, torch.float32, "nchw", (), grad=False)
            names = [name for name, _ in flatten(given)]
            together = gradients(op, given, case.options, names)
            for name, wanted in zip(names, together, strict=True):
                (alone,) = gradients(op, given, case.options, [name])
                torch.testing.assert_close(alone, wanted, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
