"""The parity suite that every kernel runs through: one list of cases an op, on every backend that has a kernel for it.

A case gives float64 inputs; the oracle is the plain torch composition the op replaces, written in the op's own test
file. Inputs are rounded to the dtype under test first, so only the kernel's own error is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import liteseg_kernels as lk
from liteseg_kernels import _dispatch
from tests.worlds import World, find, world

from .tolerance import assert_near

WORLD_OF = {"reference": "reference", "cpu": "cpu", "triton": "interpreter", "cuda": "emulator"}
LAYOUTS = ("nchw", "channels_last", "sliced", "expanded", "unaligned")


@dataclass(frozen=True)
class Case:
    """Inputs of one call: what `make` gives goes in by name, `options` as they are. `slow`: not in an interpreter."""

    name: str
    make: Callable[[torch.Generator], dict[str, Tensor | list[Tensor] | None]]
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False


def worlds_of(op: str) -> list[str]:
    """Worlds in which some backend has a kernel for `op`."""
    names = [WORLD_OF[backend] for backend in _dispatch.BACKENDS if backend in _dispatch._registry[op]]
    return [*names, "gpu"]


def parametrise(op: str, cases: Sequence[Case], *, also: str | None = None) -> Callable[[Any], Any]:
    """Parametrise a test over worlds with a kernel for `op` (and for `also`), and over the cases each can afford."""
    names = [w for w in worlds_of(op) if also is None or w in worlds_of(also)]
    rows = [
        pytest.param(name, case, id=f"{name}-{case.name}", marks=[pytest.mark.gpu] if name == "gpu" else [])
        for name in names
        for case in cases
        if not (case.slow and name in ("interpreter", "emulator"))
    ]
    return pytest.mark.parametrize(("world_name", "case"), rows)


def enter(name: str) -> Any:
    """`world(name)`, or a skip with its reason."""
    here = find(name)
    if not here.available:
        pytest.skip(here.reason)
    return world(name)


def dtypes_of(name: str) -> tuple[torch.dtype, ...]:
    return find(name).dtypes


def as_layout(x: Tensor, layout: str) -> Tensor:
    """The same values (for "expanded": the first image's, repeated) in a memory layout meant to trip a kernel up."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if layout == "sliced":
        # every second element of a larger tensor along the last axis, with a margin of NaN around
        big = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"))
        view = big[..., 1 : 1 + 2 * x.shape[-1] : 2]
        return view.copy_(x)
    if layout == "expanded" and x.shape[0] > 1:
        return x[:1].expand(x.shape)
    if layout == "unaligned":
        flat = x.new_empty(x.numel() + 1)
        return flat[1:].view(x.shape).copy_(x)
    return x.contiguous()


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [_each(v, change) for v in value]
    return value


def rounded(tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Inputs with the values they have in `dtype`, still float64 (integers stay)."""
    return {k: _each(v, lambda t: t.to(dtype).double() if t.is_floating_point() else t) for k, v in tensors.items()}


def inputs(
    tensors: dict[str, Any], here: World, dtype: torch.dtype, layout: str, laid_out: Sequence[str], grad: bool
) -> dict[str, Any]:
    """Inputs for a backend: dtype, device, the layout for the maps named in `laid_out`, leaves that ask for grads."""

    def place(name: str, t: Tensor) -> Tensor:
        t = t.to(here.device, dtype if t.is_floating_point() else t.dtype)
        t = as_layout(t, layout) if name in laid_out else t
        return t.detach().requires_grad_(grad and t.is_floating_point())

    return {k: _each(v, lambda t, k=k: place(k, t)) for k, v in tensors.items()}


def flatten(tensors: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """(name, tensor) of every floating tensor, lists numbered."""
    flat: list[tuple[str, Tensor]] = []
    for name, value in tensors.items():
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        for index, item in items:
            if isinstance(item, (list, tuple)):
                flat += flatten({f"{name}[{index}]": list(item)})
            elif isinstance(item, Tensor) and item.is_floating_point():
                flat.append((name if index is None else f"{name}[{index}]", item))
    return flat


def check_forward(
    op: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    world_name: str,
    case: Case,
    *,
    maps: Sequence[str],
    layouts: Sequence[str] = LAYOUTS,
    compare: Callable[..., None] = assert_near,
) -> None:
    """`op` against `oracle` in every dtype and layout, with the promised memory format, twice the same bits."""
    tensors = case.make(torch.Generator().manual_seed(0))
    with enter(world_name) as here:
        for dtype in here.dtypes:
            exact = rounded(tensors, dtype)
            for layout in layouts:
                given = inputs(tensors, here, dtype, layout, maps, grad=False)
                shown = dict(exact)
                if layout == "expanded":
                    shown |= {m: exact[m][:1].expand(exact[m].shape) for m in maps if exact[m].shape[0] > 1}
                actual = op(**given, **case.options)
                what = f"{case.name}, {layout}"
                compare(actual, oracle(**shown, **case.options), dtype, what)
                if actual.dim() == 4:
                    lead = given[maps[-1]]
                    wanted = torch._prims_common.suggest_memory_format(lead)
                    assert actual.is_contiguous(memory_format=wanted), f"{what}: memory format"
                assert torch.equal(actual, op(**given, **case.options)), f"{what}: not the same bits twice"
                assert all(
                    actual.untyped_storage().data_ptr() != t.untyped_storage().data_ptr()
                    for _, t in flatten(given)
                    if actual.numel()
                ), f"{what}: aliases an input"


def check_backward(
    op: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    world_name: str,
    case: Case,
    *,
    maps: Sequence[str],
    layouts: Sequence[str] = ("nchw", "channels_last", "sliced"),
    dtypes: Sequence[torch.dtype] | None = None,
    factor: float = 2.0,
) -> None:
    """Every gradient against the oracle's, with upstream gradients as autograd really makes them: views."""
    tensors = case.make(torch.Generator().manual_seed(0))
    with enter(world_name) as here:
        for dtype in dtypes or here.dtypes:
            exact = _each(list(rounded(tensors, dtype).values()), lambda t: t)
            named = dict(zip(tensors, exact, strict=True))
            leaves = {k: _each(v, lambda t: t.clone().requires_grad_(t.is_floating_point())) for k, v in named.items()}
            expected_out = oracle(**leaves, **case.options)
            upstream = torch.randn(expected_out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            upstream = upstream.to(dtype).double()
            for layout in layouts:
                given = inputs(tensors, here, dtype, layout, maps, grad=True)
                actual_out = op(**given, **case.options)
                # what cat's and sum's backward hand on: slices and expanded scalars
                for grad in (upstream, upstream.new_ones(()).expand(upstream.shape)):
                    sent = grad.to(here.device, actual_out.dtype)
                    sent = as_layout(sent, layout) if grad is upstream else sent
                    names = [n for n, _ in flatten(leaves)]
                    expected = torch.autograd.grad(
                        expected_out, [t for _, t in flatten(leaves)], grad, retain_graph=True, allow_unused=True
                    )
                    first, second = (
                        torch.autograd.grad(
                            actual_out, [t for _, t in flatten(given)], sent, retain_graph=True, allow_unused=True
                        )
                        for _ in range(2)
                    )
                    for name, got, again, want in zip(names, first, second, expected, strict=True):
                        what = f"{case.name}, {layout}: gradient of {name}"
                        if want is None:
                            assert got is None, what
                            continue
                        assert_near(got, want, dtype, what, factor)
                        assert torch.equal(got, again), f"{what}: not the same bits twice"


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(op: Any, args: tuple[Any, ...], *, layouts: Sequence[str] = ("nchw", "channels_last", "sliced")) -> None:
    """torch's own checks of a registered op, for each layout of the first tensor."""
    for layout in layouts:
        first = args[0]
        laid = as_layout(first.detach(), layout) if first.dtype.is_floating_point else first
        laid = laid.requires_grad_(first.requires_grad)
        torch.library.opcheck(op, (laid, *args[1:]), test_utils=OPCHECKS)


__all__ = [
    "LAYOUTS",
    "Case",
    "as_layout",
    "assert_near",
    "check_backward",
    "check_forward",
    "lk",
    "opcheck",
    "parametrise",
    "randn",
]
