"""Registration shared by all ops: the dispatching kernel, the fake, autograd's refusal of a second derivative, and the
predicates of the compiled and the Triton backends."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _dispatch, _loader
from .._schemas import public

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def define(
    op: str,
    check: Callable[..., Any],
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    check_values: Callable[..., Any] | None = None,
) -> None:
    """Register op's kernel (checks, then the backend selected), fake (check, then empty outputs) and reference.

    `check` reads metadata only; `check_values` reads the tensors too, so the fake leaves it out.
    """

    def kernel(*args: Any) -> Any:
        check(*args)
        if check_values is not None:
            check_values(*args)
        return _dispatch.run(op, *args)

    def checked_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    public.impl(op, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"liteseg::{op}", checked_fake, lib=public)
    _dispatch.implement(op, "reference", reference)


def once_differentiable(op: str) -> None:
    """Give the backward op an autograd formula that refuses by name."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{op}: double backward is not supported")

    torch.library.register_autograd(f"liteseg::{op}", backward, lib=public)


def _dtype_refusal(args: tuple[Any, ...], dtypes: Sequence[torch.dtype], image: int, dtype: int | None) -> str | None:
    kind = args[image].dtype if dtype is None else args[dtype]
    return None if kind in dtypes else f"dtype {kind} is not one of {[str(d) for d in dtypes]}"


def add_compiled(
    op: str,
    backend: str,
    *,
    dtypes: Sequence[torch.dtype] = KERNEL_DTYPES,
    image: int = 0,
    dtype: int | None = None,
) -> None:
    """Register the compiled kernel `liteseg_<backend>::<op>`. The dtype of the argument numbered `image` decides, or
    the argument `dtype` where one names the result's."""
    namespace = f"liteseg_{backend}"
    qualified = f"{namespace}::{op}"
    overload = getattr(getattr(torch.ops, namespace), op).default

    def refuses(*args: Any) -> str | None:
        x = args[image]
        key = torch._C._dispatch_key_for_device(x.device.type)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
            return _loader.missing(backend) or f"has no {op} kernel for {x.device.type} tensors"
        return _dtype_refusal(args, dtypes, image, dtype)

    _dispatch.implement(op, backend, overload, refuses)


def _triton_unavailable(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cuda":
        return None
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"x is on {device_type}; Triton kernels run on CUDA tensors (on CPU tensors with TRITON_INTERPRET=1)"


def add_triton(
    op: str,
    kernel: str,
    function: str = "forward",
    *,
    dtypes: Sequence[torch.dtype] = KERNEL_DTYPES,
    image: int = 0,
    dtype: int | None = None,
) -> None:
    """Register `function` of liteseg_kernels.triton.<kernel>, imported when first used: triton is optional, and
    TRITON_INTERPRET has to be set before triton is imported. `image` and `dtype` as for `add_compiled`."""

    def refuses(*args: Any) -> str | None:
        return _triton_unavailable(args[image].device.type) or _dtype_refusal(args, dtypes, image, dtype)

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f"liteseg_kernels.triton.{kernel}"), function)(*args)

    _dispatch.implement(op, "triton", run, refuses)


def given(gradients: Sequence[torch.Tensor], mask: Sequence[bool]) -> list[torch.Tensor | None]:
    """Gradients of a backward op as autograd wants them: None where none was asked for."""
    return [g if wanted else None for g, wanted in zip(gradients, mask, strict=True)]
