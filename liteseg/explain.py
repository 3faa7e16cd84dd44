"""How a network would run here: from one plan, or which op by which backend, and why not by the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import liteseg_kernels as lk
from liteseg.predict import evaluating, predict
from liteseg_kernels._dispatch import explain_call

__all__ = ["explain"]


class _Asked(TorchDispatchMode):
    """Counts, by its explanation, every op of this library that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "liteseg" and not kwargs:
            self.found[str(explain_call(func._schema.name.split("::")[1], args))] += 1
        return func(*args, **(kwargs or {}))


def explain(model: nn.Module, size: tuple[int, int]) -> str:
    """What runs when `model` makes labels of one picture, in words. Runs the model once, on noise, if it has no plan.

    Args:
        model: a network of this library, fused or not, on its device and in its dtype.
        size: height and width of the picture in pixels.

    Returns:
        Lines of text: :func:`liteseg_kernels.explain` of the model, then each op that was called, how often, by which
        backend, and why not by the others.
    """
    parameter = next(model.parameters())
    x = torch.randn(1, getattr(model, "in_channels", 3), *size).to(parameter.device, parameter.dtype)
    with evaluating(model) as ready:
        how = lk.explain(ready, x)
        text = [str(how)]
        if "" not in how.plan:
            with _Asked() as asked:
                predict(ready, x)
            for op, count in asked.found.items():
                first, *reasons = op.splitlines()
                text += [f"{first}, {count} {'call' if count == 1 else 'calls'}", *reasons]
    return "\n".join(text)
