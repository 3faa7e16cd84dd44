"""Faults planted in what a plan is made of: the comparison that the plan's tests rest on must see each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.plan import Plan, Program
from liteseg_kernels.testing import trained_like

from .test_bf16 import LIMIT, TOWERS, Tower, needs_bf16_plans
from .test_dense import after, conv
from .test_plan import error, inference, network, picture  # noqa: F401

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

Change = Callable[[Any], None]
# where a weight lies: a node, and the keys that lead to it
Place = tuple[int, tuple[Any, ...]]


def biases(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of every vector in a node's weights."""
    if isinstance(value, Tensor):
        if value.dim() == 1:
            yield keys
    elif value is not None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from biases(item, (*keys, key))


def put(value: Any, keys: tuple[Any, ...], new: Any) -> Any:
    """`value` with another item at `keys`."""
    if not keys:
        return new
    items = dict(value) if isinstance(value, dict) else list(value)
    items[keys[0]] = put(items[keys[0]], keys[1:], new)
    return tuple(items) if isinstance(value, tuple) else items


def get(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def faults(program: Program) -> Iterator[tuple[str, Change]]:
    """Names of faults, and what plants each in the nodes of such a program."""
    for index, node in enumerate(program._nodes):
        found = list(biases(node.weights))

        def weight(keys: tuple[Any, ...], new: Callable[[Any], Any], index: int = index) -> Change:
            def change(nodes: Any) -> None:
                weights = nodes[index].weights
                nodes[index].weights = put(weights, keys, new(get(weights, keys)))

            return change

        for keys in found:
            name = ".".join(map(str, (node.name, *keys)))
            yield f"{name} dropped", weight(keys, torch.zeros_like)
            yield f"{name} doubled", weight(keys, lambda bias: 2 * bias)
        for one, other in zip(found, found[1:], strict=False):
            if get(node.weights, one).shape == get(node.weights, other).shape:
                bias = get(node.weights, other)
                yield f"{node.name}: {one} is {other}", weight(one, lambda _, bias=bias: bias)
        if node.options.get("activation") is not None:

            def inactive(nodes: Any, index: int = index) -> None:
                nodes[index].options["activation"] = None

            yield f"{node.name} without its activation", inactive
        if node.kind == "daspp":
            for branch in ("atrous", "deep"):
                if len(node.weights[branch]) > 1:
                    yield f"{branch} branches swapped", weight((branch,), lambda each: [each[1], each[0], *each[2:]])


def compiled(model: nn.Module, dtype: torch.dtype, change: Change | None) -> Plan:
    program = Program(model.in_channels)
    model.lower(program, 0)
    if change is not None:
        change(program._nodes)
    return Plan.compile(program, dtype)


SMALL = {
    # each way of a dense convolution
    "copied rows": lambda: after(3, 6, conv(6, 9, stride=2), conv(9, 8, 1, activation="relu")),
    "winograd": lambda: after(3, 20, conv(20, 24), nn.MaxPool2d(2), conv(24, 8)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": network,
    "shufflenet": lambda: network("shufflenet"),
    **{name: lambda make=make: trained_like(make()) for name, make in SMALL.items()},
}


def logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return getattr(model, "low_resolution_logits", model)


def unseen(model: nn.Module, x: Tensor, dtype: torch.dtype, limit: float) -> tuple[list[str], int]:
    """The faults that leave the logits within `limit` of float64, and how many were tried."""
    fused = lk.fuse(model)
    expected = logits_of(lk.to_reference(model).double())(x.double())
    assert error(compiled(fused, dtype, None).logits(x), expected) <= limit
    program = Program(fused.in_channels)
    fused.lower(program, 0)
    tried = list(faults(program))
    missed = [name for name, change in tried if error(compiled(fused, dtype, change).logits(x), expected) <= limit]
    return missed, len(tried)


@pytest.mark.parametrize("name", MODELS)
def test_every_fault_is_seen(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), picture(2, 3, 33, 47)
    plain = lk.to_reference(model)
    own = error(logits_of(plain)(x), logits_of(plain.double())(x.double()))
    missed, tried = unseen(model, x, torch.float32, max(3 * own, 1e-6))
    # two faults a folded bias at least
    assert not missed and tried >= 2 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@needs_bf16_plans
@pytest.mark.parametrize("name", ["stride2", "dilation"])
def test_every_fault_is_seen_in_bfloat16(name: str) -> None:
    """In a few blocks: in whole networks the roundings of bfloat16 hide what happens in front."""
    torch.manual_seed(0)
    channels, stride, blocks = TOWERS[name]
    x = picture(2, channels, 17, 23).bfloat16()
    model = trained_like(Tower(channels, stride, blocks), x.float())
    missed, _ = unseen(model, x, torch.bfloat16, LIMIT)
    assert not missed


@pytest.mark.parametrize("backbone", ["mobilenetv2", "shufflenet"])
def test_a_wrong_epsilon_is_seen(backbone: str) -> None:
    model, x = network(backbone), picture(1, 3, 33, 47)
    plain = lk.to_reference(model)
    own = plain.low_resolution_logits(x)
    exact = plain.double().low_resolution_logits(x.double())
    wrong = copy.deepcopy(model)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-4
    fused = lk.fuse(wrong)
    assert lk.runtime.explain(fused, x).plan is not None
    assert error(fused.low_resolution_logits(x), exact) > 3 * error(own, exact)
