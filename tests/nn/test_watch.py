"""`intact.Watch`: what it notices, by the comparison of csrc/python and by that in Python, which must agree."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import liteseg_kernels as lk
from liteseg_kernels import _loader, intact
from liteseg_kernels.block import FusedModule

CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute of a module inside": lambda block: setattr(block[0], "stride", (2, 2)),
    "another one": lambda block: setattr(block[1], "eps", 1e-3),
    "one of a block": lambda block: setattr(block[3], "stride", (2, 2)),
    "an attribute of the outermost": lambda block: setattr(block, "colour", "red"),
    "another value of it": lambda block: setattr(block, "scale", 2.5),
    "one less": lambda block: delattr(block[1], "eps"),
    "one more": lambda block: setattr(block[2], "forward", lambda x: x),
    "one for another": lambda block: (delattr(block[1], "eps"), setattr(block[1], "Eps", 1e-5)),
    "the mode": lambda block: block[1].train(),
    "the type": lambda block: setattr(block[2], "__class__", nn.ReLU),
    "a child": lambda block: block.register_module("2", nn.ReLU6()),
    "a child less": lambda block: block.__delitem__(2),
    "a child more": lambda block: block.append(nn.ReLU6()),
    "children in another dict": lambda block: setattr(block, "_modules", dict(block._modules)),
    "a hook": lambda block: block[0].register_forward_hook(lambda *args: None),
    "a hook before": lambda block: block[1].register_forward_pre_hook(lambda *args: None),
    "a hook of gradients": lambda block: block[1].register_full_backward_hook(lambda *args: None),
    "a dict of hooks": lambda block: setattr(block[0], "_forward_hooks", {1: print}),
    "a tensor": lambda block: setattr(block[0], "weight", nn.Parameter(block[0].weight.detach().clone())),
    "a tensor past the module": lambda block: block[0]._parameters.update(weight=block[0].weight.detach().clone()),
    "a buffer": lambda block: setattr(block[1], "running_mean", torch.zeros(4)),
    "the first child": lambda block: block[2].add_module("more", nn.ReLU()),
    "a buffer more": lambda block: block[2].register_buffer("more", torch.zeros(1)),
}


@pytest.fixture(params=["csrc", "python"], autouse=True)
def comparison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the compiled one is in use."""
    if request.param == "csrc" and _loader.unchanged() is None:
        pytest.skip(f"_watch is not loaded: {_loader.STATUS['_watch']}")
    if request.param == "python":
        monkeypatch.setattr(_loader, "_watch", None)
    return bool(request.param == "csrc")


def _block() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Sequential(nn.Conv2d(4, 4, 1))).eval()
    block.scale = 1.5
    return block


def _watched(block: nn.Module) -> intact.Watch:
    """A watch that was asked already, and has what it compares with."""
    watch = intact.Watch(block, FusedModule)
    assert watch.holds(block) and watch.holds(block)
    return watch


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change: str) -> None:
    block = _block()
    watch = _watched(block)
    CHANGES[change](block)
    assert not watch.holds(block)


def test_a_global_hook_is_noticed() -> None:
    block = _block()
    watch = _watched(block)
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert not watch.holds(block)
    finally:
        handle.remove()
    assert watch.holds(block)


def test_functional_call_is_noticed() -> None:
    block = _block()
    watch, answers = _watched(block), []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self) -> None:
            answers.append(watch.holds(block))

    torch.func.functional_call(Asks(), {"block.0.weight": torch.zeros(4, 3, 3, 3)}, ())
    assert answers == [False] and watch.holds(block)


def test_hooks_of_the_outermost_are_its_callers() -> None:
    block = _block()
    watch = _watched(block)
    block.register_forward_hook(lambda *args: None)
    assert watch.holds(block)


def test_private_attributes_are_a_modules_own_business() -> None:
    block = _block()
    block._note = block[0]._note = 1
    watch = _watched(block)
    block._note = block[0]._note = 2
    assert watch.holds(block)


def test_equal_is_the_same() -> None:
    """At another address, which the compiled comparison alone would take for a change."""
    block = _block()
    watch = _watched(block)
    block[0].stride = tuple([1] * 2)
    block.scale = float("1.5")
    assert watch.holds(block) and watch.holds(block)
    block[0].stride = (2, 2)
    assert not watch.holds(block)


def test_of_another_module_it_says_nothing() -> None:
    watch = _watched(_block())
    assert not watch.holds(_block())


def test_the_compiled_comparison_is_in_use(comparison: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the second answer is read off in Python too."""
    block = _block()
    watch = _watched(block)
    asked = []
    same = intact.Watch.same
    monkeypatch.setattr(intact.Watch, "same", lambda self, root: asked.append(root) or same(self, root))
    assert watch.holds(block) and len(asked) == (0 if comparison else 1)


def test_a_watched_module_goes_with_its_last_reference() -> None:
    block = lk.fuse(lk.InvertedResidual(8, 8, 1, 2).eval())
    assert block.is_intact() and block.is_intact()
    gone = weakref.ref(block)
    gc.disable()
    try:
        del block
        assert gone() is None
    finally:
        gc.enable()


by_hand = pytest.mark.parametrize("comparison", ["csrc"], indirect=True)


@pytest.fixture
def unchanged(comparison: bool) -> Callable[..., bool]:
    """The compiled comparison itself."""
    function = _loader.unchanged()
    assert function is not None
    return function


def _arguments() -> list[Any]:
    key, value = "key", object()
    items = {key: value}
    # the dict of the module itself, with nothing compared; types of others; one more dict
    expected = [id(int), 0, 0, 1, 1, id(key), id(value)]
    return [{}, (items,), (7,), struct.pack(f"{len(expected)}N", *expected), value]


@by_hand
def test_the_compiled_comparison_by_hand(unchanged: Callable[..., bool]) -> None:
    own, dicts, objects, expected, value = _arguments()
    assert unchanged(own, dicts, objects, expected) is True
    assert unchanged(own, ({"key": object()},), objects, expected) is False
    assert unchanged(own, ({"kez": value},), objects, expected) is False
    assert unchanged(own, ({"key": value, "more": 1},), objects, expected) is False
    assert unchanged({"more": 1}, dicts, objects, expected) is False
    assert unchanged(own, dicts, (7.0,), expected) is False


@by_hand
def test_a_list_that_is_too_short_or_too_long_is_no_match(unchanged: Callable[..., bool]) -> None:
    own, dicts, objects, expected, _ = _arguments()
    for end in range(0, len(expected), 8):
        assert unchanged(own, dicts, objects, expected[:end]) is False
    assert unchanged(own, dicts, objects, expected + bytes(8)) is False
    assert unchanged(own, dicts, objects, expected + bytes(3)) is True
    huge = struct.pack("4N", id(int), 0, 2**62, 0)
    assert unchanged(own, dicts, objects, huge) is False


@by_hand
@pytest.mark.parametrize("wrong", [([], (), (), b""), ({}, [], (), b""), ({}, (), {}, b""), ({}, (), (), "")])
def test_wrong_arguments_are_refused(unchanged: Callable[..., bool], wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        unchanged(*wrong)
    with pytest.raises(TypeError, match=r"dicts\[0\]"):
        unchanged({}, (7,), (), struct.pack("2N", 0, 0))
