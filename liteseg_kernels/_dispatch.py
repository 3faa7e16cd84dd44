"""Which backend runs an op: registration, selection, `use_backend` and `explain`.

Every backend of an op is a function with the op's own arguments plus a predicate on the same arguments that returns
None or the reason why it cannot take them. Selection looks at the arguments' metadata only, and happens inside the op:
torch.compile never sees it, so switching the backend does not recompile anything.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from . import _costs

BACKENDS = ("reference", "cpu", "triton", "cuda")
# who may run an op on a device type under "auto"; the reference takes what none of these takes. The order is that of
# preference where no times are known (_costs.py): the cheaper one comes first. What calls the kernels of other ops one
# after another comes behind a kernel for the whole op.
AUTO_ORDER = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}

_logger = logging.getLogger("liteseg_kernels")


@dataclass(frozen=True)
class Selection:
    """What `use_backend` asked for."""

    name: str
    strict: bool = False


class BackendError(RuntimeError):
    """A backend asked for with `strict=True` cannot take the input."""


@dataclass(frozen=True)
class _Implementation:
    run: Callable[..., Any]
    refuses: Callable[..., str | None]
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """Answer of `explain`: the backend that would run, and why the others would not."""

    op: str
    backend: str
    refused: dict[str, str] = field(default_factory=dict)
    # how it runs, where that is not by one kernel of its own
    note: str = ""

    def __str__(self) -> str:
        how = f", {self.note}" if self.note else ""
        return "\n".join([f"{self.op}: {self.backend}{how}", *(f"  not {k}: {v}" for k, v in self.refused.items())])


_registry: dict[str, dict[str, _Implementation]] = {}
_selected: ContextVar[Selection | None] = ContextVar("liteseg_backend", default=None)


def _validated(name: str, source: str) -> str:
    if name not in (*BACKENDS, "auto"):
        allowed = ", ".join(repr(b) for b in (*BACKENDS, "auto"))
        raise ValueError(f"{source}: name: expected one of {allowed}, got {name!r}")
    return name


def selection() -> Selection:
    """The selection in force in this thread: `use_backend`'s, else LITESEG_BACKEND's, else "auto"."""
    return _selected.get() or _of_environment(os.environ.get("LITESEG_BACKEND", "auto"))


# asked at every call of every op
@functools.cache
def _of_environment(name: str) -> Selection:
    return Selection(_validated(name, "LITESEG_BACKEND"))


class use_backend(AbstractContextManager["use_backend"]):
    """Choose the backend of this thread's ops; as a context manager the former choice comes back at its end.

    Args:
        name: "reference", "cpu", "triton", "cuda" or "auto".
        strict: raise `BackendError` where the backend cannot take an input, instead of handing it to the reference.

    Example:
        >>> import liteseg_kernels as lk
        >>> with lk.use_backend("reference"):
        ...     pass
    """

    def __init__(self, name: str, *, strict: bool = False) -> None:
        self._token = _selected.set(Selection(_validated(name, "use_backend"), strict))

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _selected.reset(self._token)


class restored(AbstractContextManager[None]):
    """Put a former `selection()` in force: backward may run in a thread that never saw `use_backend`."""

    def __init__(self, chosen: Selection) -> None:
        self._chosen = chosen

    def __enter__(self) -> None:
        self._token = _selected.set(self._chosen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _selected.reset(self._token)


def implement(
    op: str,
    backend: str,
    run: Callable[..., Any],
    refuses: Callable[..., str | None] = lambda *args: None,
    note: str = "",
) -> None:
    """Register `run` as `backend` of `op`; `refuses(*args)` returns None or the reason why it cannot take them."""
    _registry.setdefault(op, {})[backend] = _Implementation(run, refuses, note)


def tf32_allowed() -> bool:
    """Whether torch may round float32 products to tf32, those of matrices (which it may not by default:
    torch.backends.cuda.matmul.allow_tf32) and those of convolutions (which it may by default:
    torch.backends.cudnn.allow_tf32). Either switch keeps float32 exact."""
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    allowed = (torch.backends.cuda.matmul.fp32_precision, convolutions)
    return allowed == ("tf32", "tf32")


# what CUDA kernels with small grids do on sm_90, and the variable that turns it off with 0 (small_grids.cuh reads it)
SMALL_GRIDS = {"early launches": "LITESEG_EARLY_LAUNCH", "clusters": "LITESEG_CLUSTERS"}


def small_grids() -> dict[str, bool]:
    """Whether the environment leaves each of `SMALL_GRIDS` on."""
    return {name: os.environ.get(variable) != "0" for name, variable in SMALL_GRIDS.items()}


def _device_type(args: tuple[Any, ...]) -> str:
    return next(a.device.type for a in args if isinstance(a, torch.Tensor))


def refusal(op: str, backend: str, args: tuple[Any, ...]) -> str | None:
    """Why `backend` cannot run `op` on `args`."""
    implementation = _registry[op].get(backend)
    if implementation is None:
        return f"has no kernel for {op}"
    return implementation.refuses(*args)


def run_on(backend: str, op: str, *args: Any) -> Any:
    """Run `op` on `backend`, which must take it."""
    return _registry[op][backend].run(*args)


def _costs_of(op: str, args: tuple[Any, ...]) -> _costs.Costs | None:
    """What is known about the times of `op` on the GPU that `args` lie on."""
    if _device_type(args) != "cuda":
        return None
    # a picture has the dtype that it is to become
    kinds = [getattr(a, "dtype", a) for a in args]
    kind = "half" if torch.float16 in kinds or torch.bfloat16 in kinds else "single"
    return _costs.of(next(a.device.index for a in args if isinstance(a, torch.Tensor)), op, kind)


def _order(op: str, chosen: Selection, args: tuple[Any, ...]) -> Sequence[str]:
    if chosen.name != "auto":
        return (chosen.name,)
    order = AUTO_ORDER.get(_device_type(args), ())
    costs = _costs_of(op, args)
    us = costs.us if costs is not None else {}

    def place(backend: str) -> tuple[bool, float]:
        return backend in _registry[op] and bool(_registry[op][backend].note), us.get(backend, math.inf)

    return sorted(order, key=place)


def _not_preferred(op: str, args: tuple[Any, ...]) -> str:
    costs = _costs_of(op, args)
    return "not preferred on this device" + (f": {costs}" if costs is not None else "")


def explain_call(op: str, args: tuple[Any, ...]) -> Explanation:
    """`explain` for an op's own (normalised) arguments."""
    chosen = selection()
    order = _order(op, chosen, args)
    refusals = {backend: refusal(op, backend, args) for backend in BACKENDS}
    backend = next((b for b in order if refusals[b] is None), "reference")
    refused = {
        other: reason or ("not asked for" if chosen.name != "auto" else _not_preferred(op, args))
        for other, reason in refusals.items()
        if other not in (backend, "reference")
    }
    return Explanation(op, backend, refused, _registry[op][backend].note)


def run(op: str, *args: Any) -> Any:
    """Run `op` on the backend that the selection in force gives."""
    chosen = selection()
    for backend in _order(op, chosen, args):
        reason = refusal(op, backend, args)
        if reason is None:
            return run_on(backend, op, *args)
        if chosen.strict:
            raise BackendError(f"{op}: backend {backend!r} refused: {reason}")
        _logger.debug("%s: backend %s refused: %s", op, backend, reason)
    return run_on("reference", op, *args)
