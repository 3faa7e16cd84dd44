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
from .._schemas import TF32_OPS, public

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


def _missing_kernel(op: str, backend: str, x: torch.Tensor) -> str | None:
    key = torch._C._dispatch_key_for_device(x.device.type)
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"liteseg_{backend}::{op}", key):
        return None
    return _loader.missing(backend) or f"has no {op} kernel for {x.device.type} tensors"


def add_compiled(
    op: str,
    backend: str,
    *,
    dtypes: Sequence[torch.dtype] = KERNEL_DTYPES,
    image: int = 0,
    dtype: int | None = None,
    limits: Callable[..., str | None] = lambda *args: None,
) -> None:
    """Register the compiled kernel `liteseg_<backend>::<op>`. The dtype of the argument numbered `image` decides, or
    the argument `dtype` where one names the result's. `limits` on all arguments returns None or what the kernel cannot
    do."""
    overload = getattr(getattr(torch.ops, f"liteseg_{backend}"), op).default

    def refuses(*args: Any) -> str | None:
        missing = _missing_kernel(op, backend, args[image])
        return missing or _dtype_refusal(args, dtypes, image, dtype) or limits(*args)

    def run_with_precision(*args: Any) -> Any:
        return overload(*args, _dispatch.tf32_allowed())

    run = run_with_precision if backend == "cuda" and op in TF32_OPS else overload
    _dispatch.implement(op, backend, run, refuses)


def shared_memory(x: torch.Tensor) -> int:
    """Bytes of shared memory that a block of a CUDA kernel may ask for on the device of `x`; sm_80's elsewhere."""
    if x.device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(x.device)
        return properties.shared_memory_per_block_optin
    return 163 * 1024


def small_kernel(weight: torch.Tensor, most: int = 5) -> str | None:
    """The limit of the CUDA kernels on a depthwise weight."""
    if max(weight.shape[2:]) > most:
        return f"the depthwise kernel is {weight.shape[2]} x {weight.shape[3]}, more than {most} x {most}"
    return None


def add_composed(op: str, backend: str, run: Callable[..., Any], parts: Sequence[str], *, image: int = 0) -> None:
    """Register `run`, which calls the compiled kernels of the ops `parts` one after another; `explain` says so."""

    def refuses(*args: Any) -> str | None:
        missing = (_missing_kernel(part, backend, args[image]) for part in parts)
        return next(filter(None, missing), None) or _dtype_refusal(args, KERNEL_DTYPES, image, None)

    _dispatch.implement(op, backend, run, refuses, note=f"as {', then '.join(parts)}")


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
