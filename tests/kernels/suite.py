"""The parity suite that every kernel runs through: one list of cases an op, on every backend that has a kernel for it.

A case gives float64 inputs; the oracle is the plain torch composition the op replaces, written in the op's own test
file. Inputs are rounded to the dtype under test first, so only the kernel's own error is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import liteseg_kernels as lk
from liteseg_kernels import _dispatch, _loader
from tests.worlds import World, find, world

from .tolerance import ELEMENT, assert_near

WORLD_OF = {"reference": "reference", "cpu": "cpu", "triton": "interpreter", "cuda": "emulator"}
LAYOUTS = ("nchw", "channels_last", "sliced", "expanded", "unaligned")


@dataclass(frozen=True)
class Case:
    """Inputs of one call: what `make` gives goes in by name, `options` as they are. `slow`: not in an interpreter;
    `wide`: there in two combinations of dtype and layout alone, for what takes many channels."""

    name: str
    make: Callable[[torch.Generator], dict[str, Tensor | list[Tensor] | None]]
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    wide: bool = False


def _has_kernel(op: str, backend: str) -> bool:
    if backend not in _dispatch._registry[op]:
        return False
    # a library that is loaded shows which kernels it has; without it the world says why it is missing
    loaded = backend == "cpu" and _loader.missing("cpu") is None and not _dispatch._registry[op][backend].note
    return not loaded or torch._C._dispatch_has_kernel_for_dispatch_key(f"liteseg_cpu::{op}", "CPU")


def worlds_of(op: str) -> list[str]:
    """Worlds in which some backend has a kernel for `op`. What "auto" chooses on a GPU is one of those, where there is
    one."""
    backends = [backend for backend in _dispatch.BACKENDS if _has_kernel(op, backend)]
    return [*(WORLD_OF[b] for b in backends), *([f"gpu-{b}" for b in backends if b in ("triton", "cuda")] or ["gpu"])]


def parametrise(op: str, cases: Sequence[Case], *, also: str | None = None) -> Callable[[Any], Any]:
    """Parametrise a test over worlds with a kernel for `op` (and for `also`), and over the cases each can afford."""
    names = [w for w in worlds_of(op) if also is None or w in worlds_of(also)]
    rows = [
        pytest.param(name, case, id=f"{name}-{case.name}", marks=[pytest.mark.gpu] if name.startswith("gpu") else [])
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


def combinations(
    here: World, case: Case, dtypes: Sequence[torch.dtype], layouts: Sequence[str]
) -> list[tuple[torch.dtype, str]]:
    """Dtypes and layouts to run: all of them where runs are cheap, else each dtype and each layout once.

    On a GPU a combination takes several compilations: LITESEG_PARITY=each takes each dtype and layout once there too.
    """
    if case.wide and here.name in ("interpreter", "emulator"):
        return [(dtypes[0], "sliced"), (dtypes[1], "channels_last")]
    each = here.name.startswith("gpu") and os.environ.get("LITESEG_PARITY") == "each"
    if not (case.slow or each or here.name in ("interpreter", "emulator")):
        return [(dtype, layout) for dtype in dtypes for layout in layouts]
    return [(dtypes[i % len(dtypes)], layouts[i % len(layouts)]) for i in range(max(len(dtypes), len(layouts)))]


def as_layout(x: Tensor, layout: str) -> Tensor:
    """The same values (for "expanded": the first image's, repeated) in a memory layout meant to trip a kernel up."""
    if x.dim() == 0:
        return x
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if layout == "sliced":
        # every second element of a larger tensor along the last axis, with a margin of values that must not be read
        around = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max
        big = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), around)
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
        for dtype, layout in combinations(here, case, here.dtypes, layouts):
            shown = rounded(tensors, dtype)
            given = inputs(tensors, here, dtype, layout, maps, grad=False)
            if layout == "expanded":
                shown |= {m: shown[m][:1].expand(shown[m].shape) for m in maps if shown[m].shape[0] > 1}
            actual = op(**given, **case.options)
            what = f"{case.name}, {layout}"
            compare(actual, oracle(**shown, **case.options), dtype, what)
            if actual.dim() == 4:
                wanted = torch._prims_common.suggest_memory_format(given[maps[-1]])
                assert actual.is_contiguous(memory_format=wanted), f"{what}: memory format"
            # the interpreter runs one program after another, and its shim reports what may race
            if here.name != "interpreter":
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
    layouts: Sequence[str] = ("nchw", "channels_last", "expanded", "sliced"),
    dtypes: Sequence[torch.dtype] | None = None,
    factor: float = 2.0,
    before_activation: Callable[..., Tensor] | None = None,
) -> None:
    """Every gradient against the oracle's, with upstream gradients as autograd really makes them: views.

    A kernel that rounds on the way may see another side of a kink than the oracle: where `before_activation` gives a
    value that close to 0 or 6, nothing comes from upstream.
    """
    tensors = case.make(torch.Generator().manual_seed(0))
    with enter(world_name) as here:
        # one image cannot be expanded, several can be sliced as one can
        if here.name == "interpreter":
            images = tensors[maps[0]].shape[0]
            layouts = [layout for layout in layouts if layout != ("sliced" if images > 1 else "expanded")]
        for dtype, layout in combinations(here, case, dtypes or here.dtypes, layouts):
            shown = rounded(tensors, dtype)
            if layout == "expanded":
                shown |= {m: shown[m][:1].expand(shown[m].shape) for m in maps if shown[m].shape[0] > 1}
            leaves = {k: _each(v, lambda t: t.clone().requires_grad_(t.is_floating_point())) for k, v in shown.items()}
            expected_out = oracle(**leaves, **case.options)
            upstream = torch.randn(expected_out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            upstream = upstream.to(dtype).double()
            smooth = torch.ones_like(upstream)
            if before_activation is not None and upstream.numel():
                z = before_activation(**leaves, **case.options).detach()
                margin = ELEMENT[dtype] * z.abs().max()
                smooth = ((z.abs() > margin) & ((z - 6).abs() > margin)).double()
                upstream = upstream * smooth
            given = inputs(tensors, here, dtype, layout, maps, grad=True)
            actual_out = op(**given, **case.options)
            names = [n for n, _ in flatten(leaves)]
            sources, wanted = [t for _, t in flatten(given)], [t for _, t in flatten(leaves)]
            # what cat's and sum's backward hand on: slices and expanded scalars
            expanded = upstream.new_ones(()).expand(upstream.shape) if smooth.all() else smooth
            for grad in (upstream, expanded) if here.name != "interpreter" or layout == "nchw" else (upstream,):
                sent = grad.to(here.device, actual_out.dtype)
                sent = as_layout(sent, layout) if grad is upstream and layout != "expanded" else sent
                expected = torch.autograd.grad(expected_out, wanted, grad, retain_graph=True, allow_unused=True)
                first, *again = (
                    torch.autograd.grad(actual_out, sources, sent, retain_graph=True, allow_unused=True)
                    for _ in range(1 if here.name == "interpreter" else 2)
                )
                for index, (name, got, want) in enumerate(zip(names, first, expected, strict=True)):
                    what = f"{case.name}, {layout}: gradient of {name}"
                    if want is None:
                        assert got is None, what
                        continue
                    assert_near(got, want, dtype, what, factor)
                    assert all(torch.equal(got, g[index]) for g in again), f"{what}: not the same bits twice"


def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(
    op: Any,
    args: tuple[Any, ...],
    *,
    maps: Sequence[int] = (0,),
    layouts: Sequence[str] = ("nchw", "channels_last", "sliced"),
) -> None:
    """torch's own checks of a registered op; those that see strides for each layout of the arguments in `maps` too."""
    for position in maps:
        for layout in layouts if position == maps[0] else layouts[1:]:
            given = list(args)
            laid = as_layout(args[position].detach(), layout)
            given[position] = laid.requires_grad_(args[position].requires_grad)
            whole = position == maps[0] and layout == layouts[0]
            torch.library.opcheck(
                op, tuple(given), test_utils=OPCHECKS if whole else ("test_schema", "test_faketensor")
            )


def check_wrong_input(op: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """`functional.<op>` refuses `arguments` by name with the same words in its kernel, in its fake and in `explain`."""
    pattern = f"{op}: {text}"
    with pytest.raises(error, match=pattern):
        getattr(lk.functional, op)(**arguments)
    with pytest.raises(error, match=pattern):
        lk.explain(op, **arguments)
    with FakeTensorMode() as mode, pytest.raises(error, match=pattern):
        getattr(lk.functional, op)(**tree_map_only(Tensor, mode.from_tensor, arguments))


def check_double_backward_refused(op: str, output: Tensor, x: Tensor) -> None:
    """The second derivative of `op` raises, naming the op."""
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}_backward: double backward is not supported"):
        grad.sum().backward()


__all__ = [
    "LAYOUTS",
    "Case",
    "as_layout",
    "assert_near",
    "check_backward",
    "check_double_backward_refused",
    "check_forward",
    "check_wrong_input",
    "enter",
    "lk",
    "opcheck",
    "parametrise",
    "randn",
]
