"""Triton's kernels where sizes decide: another kernel, shared sums, 64-bit offsets (tests/coverage/thresholds.md)."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import liteseg_kernels as lk

from . import test_batch_norm_activation, test_daspp, test_inverted_residual, test_separable_conv2d
from .suite import Case, check_backward, enter, inputs, rounded, worlds_of
from .test_partial_gradients import OPS, gradients
from .tolerance import assert_near

F = lk.functional
separable, pyramid, block = test_separable_conv2d.case, test_daspp.case, test_inverted_residual.case

# the sum over the input's channels is shared by several programs
SPLIT = [
    (F.separable_conv2d, test_separable_conv2d.oracle, separable("", 1, c, 1, 2, 5, residual=True, activation="relu"))
    for c in (176, 177, 768)
] + [(F.daspp, test_daspp.oracle, pyramid("", 1, c, 1, 2, 3, (1,), point=True)) for c in (176, 177)]
# the hidden channels never reach memory, in half types
FUSED = [
    (F.inverted_residual, test_inverted_residual.oracle, block("", 1, c, 3, 4, 5, 2, stride=stride))
    for c in (32, 33)
    for stride in (1, 2)
]


def check(op: Callable[..., Tensor], oracle: Callable[..., Tensor], case: Case, dtype: torch.dtype) -> None:
    with enter("interpreter") as here:
        tensors = case.make(torch.Generator().manual_seed(0))
        given = inputs(tensors, here, dtype, "nchw", ("x",), grad=False)
        assert_near(op(**given, **case.options), oracle(**rounded(tensors, dtype), **case.options), dtype, case.name)


@pytest.mark.parametrize(
    ("op", "oracle", "case"), SPLIT, ids=["separable-176", "separable-177", "separable-768", "daspp-176", "daspp-177"]
)
def test_shared_sums(op: Callable[..., Tensor], oracle: Callable[..., Tensor], case: Case) -> None:
    check(op, oracle, case, torch.float32)


@pytest.mark.parametrize(
    ("programs", "steps", "wanted"),
    [(1, 100, 8), (20, 100, 4), (66, 100, 2), (67, 100, 1), (1, 12, 2), (1, 11, 1), (1, 1, 1)],
)
def test_sums_are_shared_as_far_as_the_device_is_idle(programs: int, steps: int, wanted: int) -> None:
    with enter("interpreter"):
        common = importlib.import_module("liteseg_kernels.triton._common")
        assert common.splits_of(programs, steps, torch.empty(1)) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("op", "oracle", "case"), FUSED, ids=["32-1", "32-2", "33-1", "33-2"])
def test_fused_hidden_channels(
    op: Callable[..., Tensor], oracle: Callable[..., Tensor], case: Case, dtype: torch.dtype
) -> None:
    check(op, oracle, case, dtype)


@pytest.mark.parametrize("parts", [2, 512])
def test_sums_of_more_tiles_than_a_program_takes(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with enter("interpreter"):
        statistics = importlib.import_module("liteseg_kernels.triton.batch_norm_activation")
        common = importlib.import_module("liteseg_kernels.triton._common")
        monkeypatch.setattr(statistics, "_LEAST_TILES", 1)
        monkeypatch.setattr(statistics, "_MOST_PARTS", parts)
        # several steps of adding up too
        for module in (statistics, common):
            monkeypatch.setattr(module, "_ROWS", 2)
        given = next(case for case in test_batch_norm_activation.CASES if case.name == "large mean")
        test_batch_norm_activation.test_forward("interpreter", given)
        test_batch_norm_activation.test_backward("interpreter", given)


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_of_several_tiles(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with enter("interpreter"):
        backward = importlib.import_module("liteseg_kernels.triton._separable_backward")
        monkeypatch.setattr(backward, "_MOST_PARTS", parts)
    case, oracle = separable("", 2, 5, 5, 9, 4), test_separable_conv2d.oracle
    check_backward(
        F.separable_conv2d, oracle, "interpreter", case, maps=("x",), dtypes=[torch.float32], layouts=("nchw",)
    )


@pytest.mark.parametrize("op", [op for op in OPS if "interpreter" in worlds_of(op)])
def test_offsets_of_64_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets beyond 2^31 take tensors that are not made here: the code for them, on small ones."""
    module = importlib.import_module(f"tests.kernels.test_{op}")
    case = next(case for case in module.CASES if not (case.slow or case.wide or "one pixel" in case.name))
    with enter("interpreter") as here:
        common = importlib.import_module("liteseg_kernels.triton._common")
        tensors = rounded(case.make(torch.Generator().manual_seed(0)), torch.float32)
        results = []
        for largest in (common._INT32_MAX, -1):
            monkeypatch.setattr(common, "_INT32_MAX", largest)
            given = inputs(tensors, here, torch.float32, "nchw", (), grad=False)
            names = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
            results.append([getattr(F, op)(**given, **case.options), *gradients(op, given, case.options, names)])
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide)
