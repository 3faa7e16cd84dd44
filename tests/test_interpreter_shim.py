"""The shim catches the faults that it is there for: one planted kernel each."""

from __future__ import annotations

import pytest
import torch

from tests import interpreter_shim, worlds

pytest.importorskip("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402


@pytest.fixture(autouse=True)
def interpreter():
    if reason := worlds.find("interpreter").reason:
        pytest.skip(reason)
    interpreter_shim.install()


@triton.jit
def copy_kernel(source, target, step, first, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(target + tl.program_id(0) * BLOCK + i, tl.load(source + first + i * step))


@triton.jit
def collide_kernel(source, target, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(target + tl.program_id(0) + i, tl.load(source + i))


@triton.jit
def same_lane_kernel(target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK) // 2, tl.zeros((BLOCK,), tl.float32))


@triton.jit
def neighbour_kernel(data, first, step):
    at = data + first + tl.program_id(0)
    tl.store(at, tl.load(at + step))


@triton.jit
def atomic_kernel(data):
    tl.atomic_add(data, 1.0)


@triton.jit
def bf16_add_kernel(data, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(data + i, tl.load(data + i) + tl.load(data + i))


@triton.jit
def cast_kernel(source, target, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i).to(target.dtype.element_ty))


@triton.jit
def dot_kernel(a, b, c, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


def fails(text: str, launch) -> None:
    with pytest.raises(Exception, match=text):
        launch()


def test_reads_and_writes_outside_are_faults():
    x, y = torch.zeros(16), torch.empty(16)
    copy_kernel[(1,)](x, y, 1, 0, BLOCK=16)
    fails("load of 1 addresses outside", lambda: copy_kernel[(1,)](x, y, 1, 1, BLOCK=16))
    fails("load of 2 addresses outside", lambda: copy_kernel[(1,)](x, y, 1, -2, BLOCK=16))
    fails("store of 8 addresses outside", lambda: copy_kernel[(1,)](x, y[:8], 1, 0, BLOCK=16))


def test_the_gaps_of_a_view_are_outside():
    x, y = torch.zeros(32)[::2], torch.empty(16)
    copy_kernel[(1,)](x, y, 2, 0, BLOCK=16)
    fails("load of 8 addresses outside", lambda: copy_kernel[(1,)](x, y, 1, 0, BLOCK=16))


def test_overlapping_writes_are_faults():
    x, y = torch.zeros(16), torch.empty(32)
    collide_kernel[(1,)](x, y, BLOCK=16)
    fails("what another one writes", lambda: collide_kernel[(2,)](x, y, BLOCK=16))
    fails("two lanes", lambda: same_lane_kernel[(1,)](y, BLOCK=16))


def test_reading_what_another_program_writes_is_a_fault():
    neighbour_kernel[(4,)](torch.zeros(5), 0, 0)
    fails("what another one reads", lambda: neighbour_kernel[(4,)](torch.zeros(5), 0, 1))
    fails("reads what program 0 writes", lambda: neighbour_kernel[(4,)](torch.zeros(5), 1, -1))


def test_atomics_are_faults():
    fails("atomic", lambda: atomic_kernel[(1,)](torch.zeros(1)))


def test_arithmetic_on_bfloat16_is_a_fault():
    fails("bfloat16", lambda: bf16_add_kernel[(1,)](torch.zeros(16, dtype=torch.bfloat16), BLOCK=16))


def test_bfloat16_casts_round_as_torch_does():
    x = torch.randn(1024) * torch.logspace(-38, 38, 1024)
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1 + 2**-8])
    y = torch.empty(1024, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, BLOCK=1024)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(1024)
    cast_kernel[(1,)](y, back, BLOCK=1024)
    torch.testing.assert_close(back, y.float(), rtol=0, atol=0, equal_nan=True)


def test_products_have_the_precision_asked_for():
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    exact = a.double() @ b.double()
    errors = {}
    for precision in ("ieee", "tf32"):
        c = torch.empty(16, 16)
        dot_kernel[(1,)](a, b, c, PRECISION=precision)
        errors[precision] = ((c - exact).norm() / exact.norm()).item()
    assert errors["ieee"] < 1e-6
    assert 1e-5 < errors["tf32"] < 1e-3

    c = torch.empty(16, 16)
    dot_kernel[(1,)](a.bfloat16(), b.bfloat16(), c, PRECISION="ieee")
    torch.testing.assert_close(c, a.bfloat16().float() @ b.bfloat16().float())
