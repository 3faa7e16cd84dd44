"""Drop-in: whatever a user does to the modules inside, ours compute what the plain torch.nn composition does.

Every alteration of `alterations` is done to every module and network of this library and to its composition in `plain`,
which knows nothing of it; outputs, gradients of the input and state after are compared, in eval, in training, fused
before and after, and with another state loaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import liteseg
import liteseg_kernels as lk
from liteseg_kernels.testing import trained_like

from . import plain
from .alterations import ALTERATIONS, Alteration, Undo
from .test_modules import PAIRS, Pair, close, ops_of

alterations = pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS.keys())
NAMES = [name for name in PAIRS if name not in ("convolution alone", "inverted residual, stride 2", "separable")]
pairs = pytest.mark.parametrize("pair", [PAIRS[name] for name in NAMES], ids=NAMES)


def made(pair: Pair) -> tuple[nn.Module, nn.Module, Tensor]:
    """The module and its composition in eval mode, with the same weights, and an input."""
    ours, theirs = trained_like(pair.ours()).double(), pair.theirs().double().eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(pair.shape, dtype=torch.float64)


def seed(number: int) -> None:
    # torch.manual_seed notes the stack for the devices that are not there
    torch.random.default_generator.manual_seed(number)


def alter_both(alter: Alteration, ours: nn.Module, theirs: nn.Module) -> list[Undo]:
    undo = []
    for module in (ours, theirs):
        seed(1)
        # what is computed at once has no history then, so that modules can be copied
        with torch.no_grad():
            undo.append(alter(module))
    theirs.load_state_dict(ours.state_dict())
    return undo


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, check: Callable[[Tensor, Tensor], None] = close) -> None:
    results = []
    for module in (ours, theirs):
        seed(2)
        given = x.clone().requires_grad_()
        out = module(given)
        out.sin().sum().backward()
        results.append((out.detach(), given.grad))
    for actual, expected in zip(*results, strict=True):
        check(actual, expected)
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, state[name], 1e-10, 1e-10), name


def load_another(ours: nn.Module, theirs: nn.Module) -> None:
    state = {k: v * 0.9 if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(state)


@pairs
@alterations
def test_eval_and_training(alter: Alteration, pair: Pair) -> None:
    ours, theirs, x = made(pair)
    compare(ours, theirs, x)
    undo = alter_both(alter, ours, theirs)
    compare(ours, theirs, x)
    load_another(ours, theirs)
    compare(ours, theirs, x)
    for module in (ours, theirs):
        module.train()
    compare(ours, theirs, x)
    for module, back in zip((ours, theirs), undo, strict=True):
        module.eval()
        if back is not None:
            back()
    compare(ours, theirs, x)


@pairs
@alterations
def test_fused(alter: Alteration, pair: Pair) -> None:
    ours, theirs, x = made(pair)
    fused = lk.fuse(ours)
    compare(fused, theirs, x)
    undo = alter_both(alter, fused, theirs)
    compare(fused, theirs, x)
    load_another(fused, theirs)
    compare(fused, theirs, x)
    if all(undo):
        for back in undo:
            back()
        compare(fused, theirs, x)
        assert ops_of(fused, x) == ops_of(lk.fuse(ours), x)


@pairs
@alterations
def test_altered_then_fused(alter: Alteration, pair: Pair) -> None:
    ours, theirs, x = made(pair)
    alter_both(alter, ours, theirs)
    fused = lk.fuse(ours)
    theirs.eval()
    compare(fused, theirs, x)
    load_another(fused, theirs)
    compare(fused, theirs, x)
    compare(lk.to_reference(fused), theirs, x)


# networks


# the third is the slowest by far, and has no kind of block that the others do not have
CASES = [(name, backbone) for name in ALTERATIONS for backbone in ("mobilenetv2", "shufflenet")]
CASES += [(name, "darknet19") for name in list(ALTERATIONS)[::6]]


@functools.cache
def network(backbone: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network and its composition, with the same weights, and an input. Not to be changed."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 48)
    ours = trained_like(liteseg.create_model(f"liteseg_{backbone}", num_classes=3), x)
    theirs = plain.LiteSeg(backbone, 3).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, x


def near(actual: Tensor, expected: Tensor, limit: float) -> None:
    assert (actual - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_networks(name: str, backbone: str) -> None:
    alter = ALTERATIONS[name]
    ours, theirs = (copy.deepcopy(module) for module in network(backbone)[:2])
    x = network(backbone)[2]
    # statistics of the four values that a channel has in the last maps magnify float32's rounding
    limit = 5e-3 if "training mode" in name else 1e-4
    fused = lk.fuse(ours)
    with torch.no_grad():
        fused(x)
        alter(fused)
        alter_both(alter, ours, theirs)
        expected = theirs(x)
        near(ours(x), expected, limit)
        fused.load_state_dict(ours.state_dict())
        near(fused(x), expected, limit)
