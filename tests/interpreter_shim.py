"""Makes Triton's interpreter as strict as a GPU, for tests: true bfloat16, tf32 rounding, bounds, races.

The bare interpreter keeps bfloat16 as 16-bit integers and computes on those, is exact where a GPU rounds to tf32, reads
whatever an address holds, and runs the programs one after another, which hides races. With the shim:

* bfloat16 is widened and rounded to nearest even by casts and products; any other arithmetic on it is an error;
* float32 products asked for in tf32 cut their operands off to tf32;
* every unmasked address has to be that of an element of a tensor argument (of the view, not of its storage);
* an address written by one program may be neither written nor read by another, nor written by two lanes; no atomics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

_NOBODY, _SEVERAL = -1, -2


class KernelFault(RuntimeError):
    """A kernel did what a GPU would punish, or would not do the same way twice."""


@dataclass
class _Region:
    """One tensor argument: its address range, which elements of it exist, and which program touched which."""

    first: int
    itemsize: int
    exists: np.ndarray
    writer: np.ndarray
    reader: np.ndarray


_regions: list[_Region] = []


def _region(tensor: torch.Tensor) -> _Region | None:
    if tensor.numel() == 0:
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    exists = torch.zeros(span, dtype=torch.bool)
    exists.as_strided(tensor.shape, tensor.stride()).fill_(True)
    nobody = np.full(span, _NOBODY, dtype=np.int64)
    return _Region(tensor.data_ptr(), tensor.element_size(), exists.numpy(), nobody, nobody.copy())


def _program() -> int:
    builder = interpreter.interpreter_builder
    (x, y, z), (_, ny, nz) = builder.grid_idx, builder.grid_dim
    return (x * ny + y) * nz + z


def _elements(pointers: np.ndarray, mask: np.ndarray, what: str) -> list[tuple[_Region, np.ndarray]]:
    """Where the unmasked pointers point to: element indices, tensor by tensor."""
    pointers, mask = np.broadcast_arrays(pointers, mask)
    left = pointers[mask].astype(np.int64)
    found = []
    for region in _regions:
        index, rest = np.divmod(left - region.first, region.itemsize)
        valid = (index >= 0) & (index < region.exists.size) & (rest == 0)
        valid[valid] = region.exists[index[valid]]
        if valid.any():
            found.append((region, index[valid]))
            left = left[~valid]
        if left.size == 0:
            return found
    raise KernelFault(f"{what} of {left.size} addresses outside of the tensor arguments by program {_program()}")


def _check_load(pointers: np.ndarray, mask: np.ndarray) -> None:
    program = _program()
    for region, index in _elements(pointers, mask, "load"):
        writers = region.writer[index]
        if ((writers != _NOBODY) & (writers != program)).any():
            raise KernelFault(f"program {program} reads what program {writers.max()} writes in the same launch")
        readers = region.reader[index]
        region.reader[index] = np.where((readers == _NOBODY) | (readers == program), program, _SEVERAL)


def _check_store(pointers: np.ndarray, mask: np.ndarray) -> None:
    program = _program()
    for region, index in _elements(pointers, mask, "store"):
        if np.unique(index).size != index.size:
            raise KernelFault(f"two lanes of program {program} write one address")
        for touched, verb in ((region.writer[index], "writes"), (region.reader[index], "reads")):
            if ((touched != _NOBODY) & (touched != program)).any():
                raise KernelFault(f"program {program} writes what another one {verb} in the same launch")
        region.writer[index] = program


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: np.ndarray, dropped: int) -> np.ndarray:
    """Bits of float32 `values` rounded to nearest even with the `dropped` lowest bits cleared; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(dropped)) & np.uint32(1)
    up = (bits + np.uint32((1 << (dropped - 1)) - 1) + odd) >> np.uint32(dropped) << np.uint32(dropped)
    return np.where(np.isnan(values), np.uint32(0x7FC00000), up)


def _cut_off(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it for tf32: without the 13 lowest bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(values), np.float32("nan"), bits.view(np.float32))


def _is_bf16(*handles: Any) -> bool:
    return any(handle.dtype.scalar == tl.bfloat16 for handle in handles)


def _no_bf16(operation: str, *handles: Any) -> None:
    if _is_bf16(*handles):
        raise KernelFault(f"{operation} on bfloat16: widen to float32 first")


def install() -> None:
    """Patch the interpreter of this process. Calling it again does nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "liteseg_shim", False):
        return
    cast, convert, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot
    load, store = builder.create_masked_load, builder.create_masked_store
    init_args, reduce = interpreter.GridExecutor._init_args_hst, interpreter.ReduceScanOpInterface.apply
    handle, patch_lang_tensor = interpreter.TensorHandle, interpreter._patch_lang_tensor

    def cast_bf16(src: Any, target: Any) -> Any:
        data = _widened(src.data) if src.dtype.scalar == tl.bfloat16 else src.data
        if target.scalar == tl.bfloat16:
            data = (_rounded(data.astype(np.float32), 16) >> np.uint32(16)).astype(np.uint16)
            return handle(data, tl.bfloat16)
        return handle(data.astype(interpreter._get_np_dtype(target)), target.scalar)

    def cast_impl(self: Any, src: Any, target: Any) -> Any:
        if tl.bfloat16 in (src.dtype.scalar, target.scalar):
            return cast_bf16(src, target)
        return cast(self, src, target)

    def create_fp_to_fp(self: Any, src: Any, target: Any, rounding: Any) -> Any:
        if tl.bfloat16 in (src.dtype.scalar, target.scalar):
            return cast_bf16(src, target)
        return convert(self, src, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if _is_bf16(a, b):
            a, b = (handle(_widened(h.data), tl.float32) for h in (a, b))
        elif a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            a, b = (handle(_cut_off(h.data), tl.float32) for h in (a, b))
        return dot(self, a, b, d, precision, imprecise)

    def refusing(name: str, operands: int) -> None:
        original = getattr(builder, name)

        def checked(self: Any, *args: Any) -> Any:
            _no_bf16("arithmetic", *args[:operands])
            return original(self, *args)

        setattr(builder, name, checked)

    def apply(self: Any, value: Any) -> Any:
        _no_bf16("reduction", *(value if isinstance(value, tuple) else (value,)))
        return reduce(self, value)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check_load(pointers.data, mask.data)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check_store(pointers.data, mask.data)
        return store(self, pointers, value, mask, *rest)

    def no_atomics(self: Any, *args: Any) -> Any:
        raise KernelFault("atomic operation: results would depend on the order of the programs")

    def _init_args_hst(self: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = init_args(self, args, kwargs)
        groups = (a if isinstance(a, tuple) else (a,) for a in (*host_args, *host_kwargs.values()))
        tensors = [a for group in groups for a in group if isinstance(a, torch.Tensor)]
        _regions[:] = [region for region in map(_region, tensors) if region is not None]
        return host_args, host_kwargs

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_lang_tensor(tensor, scope)
        # triton 3.6 makes an int of an array of one element, which numpy 2.4 refuses: run-time bounds of range() fail
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    for name, operands in (("binary_op", 2), ("unary_op", 1), ("create_fma", 3), ("create_fabs", 1)):
        refusing(name, operands)
    for function in (cast_impl, create_fp_to_fp, create_dot, create_masked_load, create_masked_store):
        setattr(builder, function.__name__, function)
    builder.create_atomic_rmw = builder.create_atomic_cas = no_atomics
    interpreter.ReduceScanOpInterface.apply = apply
    interpreter.GridExecutor._init_args_hst = _init_args_hst
    interpreter._patch_lang_tensor = _patch_lang_tensor
    builder.liteseg_shim = True
