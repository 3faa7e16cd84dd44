"""Faults planted between an op and its kernel: the parity suite must see each of them on every backend.

What a kernel is handed is changed as a wrong kernel would change it; the op's own parity test then has to fail.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from liteseg_kernels import _dispatch

from .suite import worlds_of

# ops with biases, activations or branches, and the file with their parity test
OPS = (
    "batch_norm_activation",
    "daspp",
    "inverted_residual",
    "separable_conv2d",
    "separable_conv2d_classifier",
    "shuffle_unit",
    "upsample_concat_separable_conv2d",
)
Arguments = dict[str, Any]
Fault = Callable[[Arguments], Arguments]


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return [_each(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _fitted(other: Any, like: Tensor) -> Tensor:
    """The first vector of another argument, as long as `like`."""
    other = other[0] if isinstance(other, (list, tuple)) and other else other
    if not isinstance(other, Tensor):
        return like
    return other.repeat(-(-like.numel() // other.numel()))[: like.numel()]


def names(op: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.liteseg, op).default._schema.arguments]


def faults(op: str) -> dict[str, Fault]:
    found: dict[str, Fault] = {}
    biases = [name for name in names(op) if name.endswith("bias")]
    for name in biases:
        found[f"{name} dropped"] = lambda a, n=name: {n: _each(a[n], torch.zeros_like)}
        found[f"{name} doubled"] = lambda a, n=name: {n: _each(a[n], lambda bias: 2 * bias)}
    for one, other in zip(biases, biases[1:], strict=False):
        found[f"{other} in place of {one}"] = lambda a, n=one, m=other: {
            n: _each(a[n], lambda bias: _fitted(a[m], bias))
        }
    for name in names(op):
        if name.startswith("atrous"):
            found[f"{name}: branches swapped"] = lambda a, n=name: {n: list(a[n])[::-1]}
    if "activation" in names(op):
        found["no activation"] = lambda a: {"activation": 0}
    if "invstd" in names(op):
        # as epsilon 1e-4 instead of 1e-5 gives
        found["another epsilon"] = lambda a: {"invstd": (a["invstd"].double() ** -2 + 9e-5).rsqrt().to(a["invstd"])}
    return found


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return all(map(equal, a, b))
    return bool(a == b)


ROWS = [
    pytest.param(op, world, fault, id=f"{world}-{op}-{fault}")
    for op in OPS
    for world in worlds_of(op)
    if not world.startswith("gpu")
    for fault in faults(op)
    # slow there, and seen wherever a dropped one is
    if not (world == "interpreter" and "doubled" in fault)
]


@pytest.mark.parametrize(("op", "world", "fault"), ROWS)
def test_parity_sees_it(op: str, world: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"tests.kernels.test_{op}")
    change, planted = faults(op)[fault], []

    def wrong(run: Callable[..., Any]) -> Callable[..., Any]:
        def tampered(*args: Any) -> Any:
            given = dict(zip(names(op), args, strict=True))
            changed = change(given)
            planted.append(any(not equal(given[name], value) for name, value in changed.items()))
            return run(*(given | changed).values())

        return tampered

    backends = {name: dataclasses.replace(b, run=wrong(b.run)) for name, b in _dispatch._registry[op].items()}
    monkeypatch.setitem(_dispatch._registry, op, backends)
    seen: list[str] = []
    for case in module.CASES:
        if case.slow or case.wide:
            continue
        planted.clear()
        try:
            module.test_forward(world, case)
        except AssertionError:
            assert any(planted), "the suite fails without the fault"
            return
        if any(planted):
            seen.append(case.name)
    pytest.fail(f"not seen by {', '.join(seen) or 'any case, for none can hold it'}")
