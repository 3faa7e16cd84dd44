"""float32 with and without tf32: torch's two switches decide, and both have to allow it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worlds import find

from . import test_daspp, test_inverted_residual, test_separable_conv2d, test_shuffle_unit
from . import test_upsample_concat_separable_conv2d as decoder
from .suite import enter, flatten, inputs, lk, rounded
from .tolerance import RELATIVE

# relative Frobenius error; gradients twice that
TF32 = 1e-3
# op -> the module of its cases, the case, and whether a product may move no value over a kink inside of the op, from
# where on a gradient would be another one
OPS: dict[str, tuple[Any, str, bool]] = {
    "separable_conv2d": (test_separable_conv2d, "no padding, no bias", True),
    "inverted_residual": (test_inverted_residual, "residual", False),
    "shuffle_unit": (test_shuffle_unit, "31 channels", False),
    "daspp": (test_daspp, "31 channels", False),
    decoder.OP: (decoder, "four times larger", True),
}


@pytest.fixture
def switches() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _error(got: Tensor, want: Tensor) -> float:
    return ((got.detach().double().cpu() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("world_name", ["interpreter", pytest.param("gpu-triton", marks=pytest.mark.gpu)])
def test_both_switches_have_to_allow_tf32(world_name: str, op: str, switches: None) -> None:
    module, name, smooth = OPS[op]
    case = next(c for c in module.CASES if c.name == name)
    shown = rounded(case.make(torch.Generator().manual_seed(0)), torch.float32)
    leaves = inputs(shown, find("reference"), torch.float64, "nchw", (), grad=True)
    expected = module.oracle(**leaves, **case.options)
    with enter(world_name) as here:
        given = inputs(shown, here, torch.float32, "nchw", (), grad=True)
        outputs = {}
        for switched in ((True, False), (False, True), (True, True)):
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switched
            outputs[switched] = getattr(lk.functional, op)(**given, **case.options)
        assert _error(outputs[True, False], expected.detach()) < RELATIVE[torch.float32]
        assert _error(outputs[False, True], expected.detach()) < RELATIVE[torch.float32]
        assert RELATIVE[torch.float32] < _error(outputs[True, True], expected.detach()) < TF32
        if smooth:
            upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            wanted = torch.autograd.grad(expected, [t for _, t in flatten(leaves)], upstream)
            sent = upstream.to(here.device, torch.float32)
            found = torch.autograd.grad(outputs[True, True], [t for _, t in flatten(given)], sent)
            assert max(map(_error, found, wanted)) < 2 * TF32
