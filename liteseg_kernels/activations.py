"""The activations that ops and modules know, each with its name, module, formula and gradient: the only table of them.

Kernels know an activation by its place here: `triton/_common.py`, and for the compiled ones `types.h` with
`simd/math.h` on the CPU and `tile.cuh` in CUDA. Those four and this file are what a new one touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        name: as functions take it.
        module: the class of torch.nn that computes it.
        options: the module's attributes, and what they have to be; `negative_slope` stands for the caller's.
        apply: z, negative_slope -> its value.
        gradient: gradient of the value, the value itself, negative_slope -> gradient of z; zero at kinks, as torch has
            it. So only an activation whose gradient follows from its value has a place here.
    """

    name: str | None
    module: type[nn.Module]
    apply: Callable[[Tensor, float], Tensor]
    gradient: Callable[[Tensor, Tensor, float], Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, negative_slope: float) -> nn.Module:
        """A module of it."""
        return self.module(negative_slope) if "negative_slope" in self.options else self.module()

    def reason(self, module: nn.Module, negative_slope: float) -> str | None:
        """Why a module of its class computes something else, as `attribute: expected X, got Y`."""
        for attribute, wanted in self.options.items():
            expected = negative_slope if attribute == "negative_slope" else wanted
            if getattr(module, attribute) != expected:
                return f"{attribute}: expected {expected}, got {getattr(module, attribute)}"
        return None


TABLE = (
    Activation(None, nn.Identity, lambda z, slope: z, lambda grad, out, slope: grad),
    Activation("relu", nn.ReLU, lambda z, slope: tf.relu(z), lambda grad, out, slope: torch.where(out > 0, grad, 0)),
    Activation(
        "relu6",
        nn.ReLU6,
        lambda z, slope: tf.relu6(z),
        lambda grad, out, slope: torch.where((out > 0) & (out < 6), grad, 0),
        {"min_val": 0.0, "max_val": 6.0},
    ),
    Activation(
        "leaky_relu",
        nn.LeakyReLU,
        lambda z, slope: tf.leaky_relu(z, slope),
        lambda grad, out, slope: torch.where(out > 0, grad, grad * slope),
        {"negative_slope": 0.01},
    ),
)
NAMES = tuple(one.name for one in TABLE)


def index_of(name: str | None, what: str = "activation") -> int:
    """The place of an activation; ValueError for other names, `what` being what the message calls the argument."""
    if name not in NAMES:
        *others, last = (repr(known) for known in NAMES)
        raise ValueError(f"{what}: expected {', '.join(others)} or {last}, got {name!r}")
    return NAMES.index(name)
