"""How far a kernel may be from the float64 result on the same (rounded) inputs. One table for all kernels."""

from __future__ import annotations

import torch
from torch import Tensor

# relative Frobenius error; the half types are rounded once, at the output
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# no single element may be off by more than this share of the largest element: a norm alone hides one bad pixel
ELEMENT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, factor: float = 1.0) -> None:
    """`expected` is float64. `factor` widens both limits (2 for gradients)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    got = actual.detach().double().cpu()
    assert torch.isfinite(got).all(), f"{what}: not finite"
    error = got - expected
    scale = expected.norm().item()
    relative = error.norm().item() / scale if scale else error.norm().item()
    assert relative <= factor * RELATIVE[dtype], f"{what}: relative error {relative:.3g} in {dtype}"
    largest = expected.abs().max().item()
    worst = error.abs().max().item() / largest if largest else error.abs().max().item()
    assert worst <= factor * ELEMENT[dtype], f"{what}: an element is off by {worst:.3g} of the largest in {dtype}"
