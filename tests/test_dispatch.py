"""Which backend runs, who decides it, what the library says about it, and autocast."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import liteseg_kernels as lk
from liteseg_kernels import _costs, _dispatch, info

F = lk.functional
ROOT = Path(__file__).resolve().parent.parent
OPS = [
    "separable_conv2d",
    "separable_conv2d_classifier",
    "inverted_residual",
    "shuffle_unit",
    "daspp",
    "upsample_concat",
    "upsample_concat_separable_conv2d",
    "upsample_argmax",
    "upsample_cross_entropy",
    "preprocess",
    "depthwise_conv2d",
    "batch_norm_activation",
]


def example(op: str, device: str = "cpu") -> dict[str, Any]:
    """Small valid arguments of `functional.<op>`."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device)

    def separable(c: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
        return rand(c, 1, 3, 3), rand(out, c, 1, 1), rand(out)

    if op == "separable_conv2d":
        depthwise, pointwise, bias = separable(4, 3)
        return {"x": rand(2, 4, 5, 6), "depthwise_weight": depthwise, "pointwise_weight": pointwise, "bias": bias}
    if op == "separable_conv2d_classifier":
        weights = dict(zip(("depthwise_weight", "pointwise_weight", "bias"), separable(4, 3), strict=True))
        return {"x": rand(2, 4, 5, 6), **weights, "classifier_weight": rand(5, 3, 1, 1), "classifier_bias": rand(5)}
    if op == "depthwise_conv2d":
        return {"x": rand(2, 4, 5, 6), "weight": rand(4, 1, 3, 3), "padding": 1}
    if op == "batch_norm_activation":
        return {"x": rand(2, 4, 5, 6), "weight": rand(4), "bias": rand(4), "activation": "relu"}
    if op == "inverted_residual":
        names = tuple(f"{part}_{kind}" for part in ("expand", "depthwise", "project") for kind in ("weight", "bias"))
        shapes = ((8, 4, 1, 1), (8,), (8, 1, 3, 3), (8,), (3, 8, 1, 1), (3,))
        return {"x": rand(2, 4, 5, 6), **{n: rand(*s) for n, s in zip(names, shapes, strict=True)}}
    if op == "shuffle_unit":
        names = tuple(f"{part}_{kind}" for part in ("compress", "depthwise", "expand") for kind in ("weight", "bias"))
        shapes = ((4, 2, 1, 1), (4,), (4, 1, 3, 3), (4,), (4, 2, 1, 1), (4,))
        return {"x": rand(2, 4, 5, 6), **{n: rand(*s) for n, s in zip(names, shapes, strict=True)}, "groups": 2}
    if op == "daspp":
        branches = {"atrous": [separable(4, 3) for _ in range(2)], "deep": [separable(3, 3) for _ in range(2)]}
        ends = {"pool": (rand(3, 4, 1, 1), rand(3)), "project": (rand(5, 9, 1, 1), rand(5))}
        return {"x": rand(2, 4, 5, 6), **branches, **ends, "direct_weight": rand(5, 4, 1, 1), "rates": (1, 2)}
    if op == "upsample_concat":
        return {"x": rand(2, 4, 3, 4), "skip": rand(2, 3, 5, 6)}
    if op == "upsample_concat_separable_conv2d":
        weights = dict(zip(("depthwise_weight", "pointwise_weight", "bias"), separable(7, 3), strict=True))
        return {"x": rand(2, 4, 3, 4), "skip": rand(2, 3, 5, 6), "padding": 1, **weights}
    if op == "upsample_argmax":
        return {"logits": rand(2, 4, 3, 4), "size": (5, 6)}
    if op == "upsample_cross_entropy":
        target = torch.randint(4, (2, 5, 6), generator=g).to(device)
        return {"logits": rand(2, 4, 3, 4), "target": target, "weight": torch.tensor([1.0, 2.0, 0.5, 1.0]).to(device)}
    return {"image": torch.randint(256, (5, 6, 3), generator=g, dtype=torch.uint8).to(device), "size": (7, 8)}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in values for t in tensors(v)]


@pytest.fixture(autouse=True)
def default_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start from the default, and end with it."""
    monkeypatch.delenv("LITESEG_BACKEND", raising=False)
    token = _dispatch._selected.set(None)
    yield
    _dispatch._selected.reset(token)


def name() -> str:
    """The choice in force in this thread."""
    return _dispatch.selection().name


def ran(monkeypatch: pytest.MonkeyPatch, op: str, backend: str) -> list[str]:
    """Replace `backend` of `op` by one that takes everything, and record its runs, which the reference does for it."""
    runs: list[str] = []

    def record(*args: Any) -> Any:
        runs.append(f"{op} on {backend}")
        return _dispatch._registry[op]["reference"].run(*args)

    replaced = _dispatch._Implementation(record, lambda *args: None)
    monkeypatch.setitem(_dispatch._registry[op], backend, replaced)
    return runs


class TestChoice:
    def test_context_managers_nest(self) -> None:
        assert name() == "auto"
        with lk.use_backend("reference"):
            assert name() == "reference"
            with lk.use_backend("triton", strict=True):
                assert _dispatch.selection() == _dispatch.Selection("triton", True)
                with lk.use_backend("auto"):
                    assert _dispatch.selection() == _dispatch.Selection("auto", False)
                assert name() == "triton"
            assert name() == "reference"
        assert name() == "auto"

    def test_an_error_ends_the_choice(self) -> None:
        with pytest.raises(KeyError), lk.use_backend("reference"):
            raise KeyError
        assert name() == "auto"

    def test_as_the_default_of_a_thread_only(self) -> None:
        lk.use_backend("reference")
        assert name() == "reference"
        with lk.use_backend("cuda"):
            pass
        assert name() == "reference"
        seen: list[str] = []

        def other() -> None:
            seen.append(name())
            lk.use_backend("triton")
            seen.append(name())

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == ["auto", "triton"]
        assert name() == "reference"

    def test_threads_of_a_pool_choose_for_themselves(self) -> None:
        barrier = threading.Barrier(3)

        def work(backend: str) -> str:
            with lk.use_backend(backend):
                barrier.wait(60)
                return lk.explain("upsample_concat", **example("upsample_concat")).backend + name()

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(work, ("reference", "auto", "reference")))[::2] == ["referencereference"] * 2

    @pytest.mark.parametrize("given", ["gpu", "", None, "Triton", 3])
    def test_unknown_name(self, given: Any) -> None:
        with pytest.raises(ValueError, match="use_backend: name: expected one of 'reference', 'cpu', .*got"):
            lk.use_backend(given)
        assert name() == "auto"

    def test_environment(self) -> None:
        code = (
            "import torch, liteseg_kernels as lk\n"
            "from liteseg_kernels._dispatch import selection\n"
            "x = torch.zeros(1, 1, 2, 2)\n"
            "print(selection().name, lk.explain('upsample_concat', x, x).backend)\n"
            "lk.use_backend('auto')\n"
            "print(selection().name)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "LITESEG_BACKEND": "reference"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == ["reference reference", "auto"]

    def test_environment_with_an_unknown_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LITESEG_BACKEND", "fast")
        with pytest.raises(ValueError, match="LITESEG_BACKEND: name: expected one of 'reference', .*got 'fast'"):
            F.upsample_concat(**example("upsample_concat"))
        with lk.use_backend("reference"):
            F.upsample_concat(**example("upsample_concat"))


class TestFallback:
    def test_a_refusal_goes_to_the_reference_and_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        given = {k: v.double() for k, v in example("upsample_concat").items()}
        with caplog.at_level(logging.DEBUG, "liteseg_kernels"), lk.use_backend("cpu"):
            out = F.upsample_concat(**given)
            explained = lk.explain("upsample_concat", **given)
        assert out.dtype == torch.float64
        assert explained.backend == "reference"
        assert explained.refused["cpu"] in caplog.text
        assert caplog.text.count("\n") == 1

    def test_strict_raises_the_reason(self) -> None:
        given = {k: v.double() for k, v in example("upsample_concat").items()}
        with lk.use_backend("cpu", strict=True):
            reason = lk.explain("upsample_concat", **given).refused["cpu"]
            with pytest.raises(lk.BackendError) as error:
                F.upsample_concat(**given)
        assert str(error.value) == f"upsample_concat: backend 'cpu' refused: {reason}"

    def test_a_backend_without_a_kernel(self) -> None:
        refused = pytest.raises(lk.BackendError, match="has no kernel for upsample_concat")
        with lk.use_backend("cuda", strict=True), refused:
            F.upsample_concat(**example("upsample_concat"))

    def test_triton_needs_cuda_or_its_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with lk.use_backend("triton"):
            explained = lk.explain("separable_conv2d", **example("separable_conv2d"))
        assert explained.backend == "reference"
        reason = explained.refused["triton"]
        assert "TRITON_INTERPRET=1" in reason or reason == "triton is not installed"

    def test_parts_come_behind_a_kernel_for_the_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(_dispatch.AUTO_ORDER, "cpu", ("cpu", "cuda"))
        whole = ran(monkeypatch, "separable_conv2d_classifier", "cuda")
        F.separable_conv2d_classifier(**example("separable_conv2d_classifier"))
        assert len(whole) == 1
        if lk._loader.missing("cpu") is None:
            part = ran(monkeypatch, "separable_conv2d", "cuda")
            F.separable_conv2d(**example("separable_conv2d"))
            assert part == []

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_the_cheaper_backend_comes_first(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.empty(1, 2, 4, 4, dtype=dtype, device="meta")
        asked = []

        def known(index: int | None, op: str, kind: str) -> _costs.Costs | None:
            asked.append((op, kind))
            us = {"triton": 3.0, "cuda": 2.0}
            return _costs.Costs(us, "a GPU", "a case", True) if op == "upsample_argmax" and kind == "half" else None

        monkeypatch.setattr(_dispatch, "_device_type", lambda args: "cuda")
        monkeypatch.setattr(_costs, "of", known)
        orders = {
            op: tuple(_dispatch._order(op, _dispatch.Selection("auto"), (x,)))
            for op in ("upsample_argmax", "separable_conv2d_backward")
        }
        first = ("cuda", "triton") if dtype != torch.float32 else ("triton", "cuda")
        assert orders == {"upsample_argmax": first, "separable_conv2d_backward": ("triton", "cuda")}
        assert {kind for _, kind in asked} == {"single" if dtype == torch.float32 else "half"}

    @pytest.mark.parametrize("measured", [True, False])
    def test_explain_gives_the_figures(self, measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        costs = _costs.Costs({"triton": 12.0, "cuda": 30.4}, "NVIDIA H200", "a case", measured)
        monkeypatch.setattr(_dispatch, "_costs_of", lambda op, args: costs)
        how = "measured on" if measured else "predicted from"
        text = _dispatch._not_preferred("upsample_concat", ())
        assert text == f"not preferred on this device: triton 12 us, cuda 30 us ({how} NVIDIA H200: a case)"

    def test_backward_runs_what_forward_ran(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = ran(monkeypatch, "separable_conv2d", "cuda")
        backward = ran(monkeypatch, "separable_conv2d_backward", "cuda")
        given = example("separable_conv2d")
        given["x"].requires_grad_()
        with lk.use_backend("cuda", strict=True):
            out = F.separable_conv2d(**given)
        with lk.use_backend("reference"):
            other = F.separable_conv2d(**given)
            out.sum().backward()
        assert (forward, backward) == (["separable_conv2d on cuda"], ["separable_conv2d_backward on cuda"])
        with lk.use_backend("cuda"):
            other.sum().backward()
        assert len(backward) == 1

    def test_backward_in_another_thread_runs_what_forward_ran(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backward = ran(monkeypatch, "separable_conv2d_backward", "cuda")
        ran(monkeypatch, "separable_conv2d", "cuda")
        given = example("separable_conv2d")
        given["x"].requires_grad_()
        with lk.use_backend("cuda"):
            out = F.separable_conv2d(**given)
        thread = threading.Thread(target=lambda: out.sum().backward())
        thread.start()
        thread.join()
        assert len(backward) == 1 and given["x"].grad is not None

    @pytest.mark.parametrize("op", [op for op in OPS if op not in ("upsample_argmax", "preprocess")])
    def test_gradients_where_forward_is_compiled(self, op: str) -> None:
        # the default on a CPU: a compiled forward, and the reference where there is no compiled backward
        gradients = []
        for backend in ("auto", "reference"):
            given = example(op)
            weight = given.pop("weight", None)
            leaves = [t.requires_grad_() for t in tensors(given)]
            with lk.use_backend(backend):
                out = getattr(F, op)(**given, **({} if weight is None else {"weight": weight}))
            gradients.append(torch.autograd.grad(out.square().sum(), leaves))
        for actual, expected in zip(*gradients, strict=True):
            # sums of large terms that cancel are only as exact as the terms
            atol = 1e-5 * expected.abs().max().item()
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


class TestExplain:
    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_runs_nothing_and_names_everyone(self, op: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for implementations in _dispatch._registry.values():
            for backend, found in list(implementations.items()):
                never = _dispatch._Implementation(lambda *args: pytest.fail("a kernel ran"), found.refuses)
                monkeypatch.setitem(implementations, backend, never)
        explained = lk.explain(op, **example(op, device))
        assert explained.op.startswith(op)
        others = {"cpu", "triton", "cuda"} - {explained.backend}
        assert set(explained.refused) == others
        assert all(explained.refused.values())
        if device == "meta":
            assert explained.backend == "reference"

    def test_prints_readably(self) -> None:
        with lk.use_backend("reference"):
            text = str(lk.explain("separable_conv2d", **example("separable_conv2d"))).splitlines()
        assert text[0] == "separable_conv2d: reference"
        assert sorted(line.split(": ")[0] for line in text[1:]) == ["  not cpu", "  not cuda", "  not triton"]

    def test_matches_what_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runs = ran(monkeypatch, "shuffle_unit", "cpu")
        given = example("shuffle_unit")
        assert lk.explain("shuffle_unit", **given).backend == "cpu"
        F.shuffle_unit(**given)
        assert len(runs) == 1
        with lk.use_backend("reference"):
            assert lk.explain("shuffle_unit", **given).refused["cpu"] == "not asked for"
            F.shuffle_unit(**given)
        assert len(runs) == 1

    def test_a_loss_a_pixel_is_an_op_of_its_own(self) -> None:
        explained = lk.explain("upsample_cross_entropy", **example("upsample_cross_entropy"), reduction="none")
        assert explained.op == "upsample_cross_entropy_map"

    def test_unknown_op(self) -> None:
        with pytest.raises(ValueError, match="explain: op: expected one of .*separable_conv2d, .*got 'conv2d'"):
            lk.explain("conv2d")

    def test_wrong_arguments_raise_as_the_op_does(self) -> None:
        with pytest.raises(ValueError, match=r"upsample_concat: skip: expected \[1, C, H, W\], got \[2, 1, 3, 3\]"):
            lk.explain("upsample_concat", torch.zeros(1, 1, 3, 3), torch.zeros(2, 1, 3, 3))


def _cast(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_cast(v, change) for v in value]
    return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value


CAST = (
    *("separable_conv2d", "inverted_residual", "shuffle_unit", "daspp", "depthwise_conv2d"),
    *("separable_conv2d_classifier", "upsample_concat_separable_conv2d"),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestAutocast:
    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    @pytest.mark.parametrize("op", [op for op in OPS if op not in ("upsample_argmax", "preprocess")])
    def test_dtype_of_outputs_and_gradients(self, op: str, compiled: bool, dtype: torch.dtype) -> None:
        call = getattr(F, op)
        if compiled:
            torch._dynamo.reset()
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        given = example(op)
        weight = {"weight": given.pop("weight")} if "weight" in given else {}
        leaves = [t.requires_grad_() for t in tensors(given)]
        exact = getattr(F, op)(**given, **weight)
        with torch.autocast("cpu", dtype):
            out = call(**given, **weight)
        # like convolutions, like torch.cat, and like cross_entropy
        assert out.dtype == (dtype if op in CAST else torch.float32)
        limit = {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
        assert (out.float() - exact).norm() <= limit * exact.norm()
        gradients = torch.autograd.grad(out.float().sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            assert gradient.dtype == torch.float32 and gradient.shape == leaf.shape

    @pytest.mark.parametrize("op", ["upsample_argmax", "preprocess"])
    def test_integer_ends_are_left_alone(self, op: str, dtype: torch.dtype) -> None:
        expected = getattr(F, op)(**example(op))
        with torch.autocast("cpu", dtype):
            assert torch.equal(getattr(F, op)(**example(op)), expected)

    @pytest.mark.parametrize("op", OPS)
    def test_float64_is_left_alone(self, op: str, dtype: torch.dtype) -> None:
        given = {k: _cast(v, lambda t: t.double()) for k, v in example(op).items()}
        given |= {"dtype": torch.float64} if op == "preprocess" else {}
        expected = getattr(F, op)(**given)
        with torch.autocast("cpu", dtype):
            assert torch.equal(getattr(F, op)(**given), expected)

    def test_half_and_single_meet_in_upsample_concat(self, dtype: torch.dtype) -> None:
        # user_pains N4: a layer's half output beside a float32 skip connection
        given = example("upsample_concat")
        with torch.autocast("cpu", dtype):
            out = F.upsample_concat(given["x"].to(dtype), given["skip"])
        assert out.dtype == torch.float32

    def test_half_logits_give_a_single_loss(self, dtype: torch.dtype) -> None:
        given = example("upsample_cross_entropy")
        logits = given.pop("logits").to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype):
            loss = F.upsample_cross_entropy(logits, **given)
        loss.backward()
        assert loss.dtype == torch.float32 and logits.grad is not None and logits.grad.dtype == dtype

    def test_a_model_in_training_and_in_eval(self, dtype: torch.dtype) -> None:
        model = torch.nn.Sequential(lk.SeparableConv2d(3, 8, activation="relu"), lk.InvertedResidual(8, 8, 1, 2))
        x = torch.randn(2, 3, 8, 9)
        for module in (model.train(), model.eval(), lk.fuse(model)):
            with torch.autocast("cpu", dtype):
                assert module(x).dtype == dtype
        with torch.autocast("cpu", dtype):
            model.train()(x).float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_switching_the_backend_does_not_recompile() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(F.upsample_concat, fullgraph=True, backend=counter)
    given = example("upsample_concat")
    outs = []
    for backend in ("reference", "auto", "cpu"):
        with lk.use_backend(backend):
            outs.append(compiled(**given))
    assert counter.frame_count == 1
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_info_says_what_small_grids_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in _dispatch.SMALL_GRIDS.values():
        monkeypatch.delenv(variable, raising=False)
    assert info.collect()["small_grids"] == info._small_grids(lk._loader.missing("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert info._small_grids(None) == {"early launches": None, "clusters": None}
    assert info._small_grids("not built") == {"early launches": "not built", "clusters": "not built"}
    monkeypatch.setenv("LITESEG_CLUSTERS", "0")
    assert info._small_grids(None) == {"early launches": None, "clusters": "switched off by LITESEG_CLUSTERS=0"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert info._small_grids(None)["early launches"] == "need sm_90"


# the kernels that README's table promises; the parity suite runs on what is registered, so a kernel that got lost
# would otherwise take its tests with it
CPU_KERNELS = {
    *("separable_conv2d", "separable_conv2d_backward", "inverted_residual", "shuffle_unit", "daspp"),
    *("upsample_concat", "upsample_concat_backward", "upsample_argmax", "preprocess"),
    *("upsample_cross_entropy", "upsample_cross_entropy_map", "upsample_cross_entropy_backward"),
}
CPU_COMPOSED = {
    *("separable_conv2d_classifier", "upsample_concat_separable_conv2d"),
    "upsample_concat_separable_conv2d_backward",
}
TRITON_BACKWARDS = {"inverted_residual_backward", "shuffle_unit_backward", "daspp_backward"}
TRAINING = {
    *("batch_norm_statistics", "batch_norm_activation"),
    *("batch_norm_activation_backward_reduce", "batch_norm_activation_backward"),
}
CPU_KERNELS |= TRAINING
TRITON_KERNELS = CPU_KERNELS | CPU_COMPOSED | TRITON_BACKWARDS
CPU_KERNELS |= {"depthwise_conv2d", "depthwise_conv2d_backward"}
CUDA_KERNELS = {
    *("separable_conv2d", "separable_conv2d_backward", "separable_conv2d_classifier", "inverted_residual"),
    *("shuffle_unit", "daspp"),
    *("upsample_concat_separable_conv2d", "upsample_argmax", "preprocess"),
}


@pytest.mark.parametrize(
    ("backend", "promised"), [("cpu", CPU_KERNELS | CPU_COMPOSED), ("triton", TRITON_KERNELS), ("cuda", CUDA_KERNELS)]
)
def test_promised_kernels_are_registered(backend: str, promised: set[str]) -> None:
    registered = {op for op, backends in _dispatch._registry.items() if backend in backends}
    assert registered == promised


@pytest.mark.parametrize("op", sorted(CPU_KERNELS))
def test_promised_cpu_kernels_are_in_the_library(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"liteseg_cpu::{op}", "CPU")
