"""The emulator itself: its operations give what the hardware gives, and it catches planted mistakes."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from . import build

THREADS = 64
SCHEDULES = [("up", 0), ("down", 0), ("random", 1), ("random", 2), ("random", 3)]

# run by an interpreter of its own under the address sanitizer, without torch
SANITIZED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
out, values, message = (ctypes.c_float * 64)(), ctypes.create_string_buffer(4 * 256), ctypes.create_string_buffer(500)
# a block of malloc's, so that the sanitizer knows where it ends
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
given = ctypes.c_void_p(libc.malloc(4 * 256))
ctypes.memset(given, 0, 4 * 256)
library.run_kernel(sys.argv[2].encode(), int(sys.argv[3]), out, given, given, message, 500)
print("message:", message.value.decode())
"""


@pytest.fixture(scope="module")
def library() -> Path:
    if reason := build.missing():
        pytest.skip(reason)
    return build.compile_module("liteseg_emulator_faults", [build.HERE / "faults.cpp"], ops=False)


@functools.cache
def _module(library: Path) -> Any:
    return build.import_module("liteseg_emulator_faults", library)


@pytest.fixture
def controls(library: Path) -> Iterator[Any]:
    module = _module(library)
    module.reset_counters()
    yield module
    module.configure()


Run = Callable[..., tuple[np.ndarray, str]]


@pytest.fixture
def run(library: Path, controls: Any) -> Run:
    code = ctypes.CDLL(str(library))

    def call(name: str, wrong: int = False, *given: np.ndarray, size: int = THREADS) -> tuple[np.ndarray, str]:
        out = np.zeros(size, np.float32)
        message = ctypes.create_string_buffer(500)
        arrays = [np.ascontiguousarray(a, np.float32) for a in given] or [np.arange(4 * THREADS, dtype=np.float32)]
        arrays = (arrays * 2)[:2]
        pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for a in (out, *arrays)]
        code.run_kernel(name.encode(), int(wrong), *pointers, message, 500)
        return out, message.value.decode()

    return call


RIGHT = {
    "barrier": 100.0 + (np.arange(THREADS) + 66) % THREADS,
    "divergent": np.ones(THREADS),
    "divergent_warp": np.arange(THREADS) ^ 1,
    "uninitialised": np.ones(THREADS),
    "copy": np.where(np.arange(THREADS) % 2 == 0, 4 * np.arange(THREADS) + 1, 0),
    "shared_write": np.ones(THREADS),
    "global_read": 4 * np.arange(THREADS) + 3,
    "too_much_shared": np.ones(THREADS),
    "misaligned": 4 * np.arange(THREADS),
    "cluster": np.arange(THREADS),
    "divergent_cluster": np.ones(THREADS),
    "early": np.arange(THREADS),
}


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
@pytest.mark.parametrize("name", list(RIGHT))
def test_right_kernels_run_in_every_schedule(run: Run, controls: Any, name: str, schedule: str, seed: int) -> None:
    controls.configure(schedule=schedule, seed=seed)
    out, message = run(name)
    assert message == ""
    np.testing.assert_array_equal(out, RIGHT[name])


def test_a_removed_barrier_shows_in_a_random_schedule(run: Run, controls: Any) -> None:
    results = []
    for seed in range(4):
        controls.configure(schedule="random", seed=seed, poison=False)
        out, message = run("barrier", True)
        assert message == ""
        results.append(not np.array_equal(out, RIGHT["barrier"]))
    assert all(results)


def test_a_divergent_barrier_is_an_error(run: Run) -> None:
    _, message = run("divergent", True)
    assert "divergent barrier: 33 of 64 threads at __syncthreads, 0 at a warp operation, 31 returned" in message


def test_a_divergent_warp_operation_is_an_error(run: Run) -> None:
    _, message = run("divergent_warp", True)
    assert "divergent barrier: 33 of 64 threads at __syncthreads, 31 at a warp operation, 0 returned" in message


def test_an_uninitialised_shared_read_is_nan(run: Run, controls: Any) -> None:
    out, _ = run("uninitialised", True)
    assert np.isnan(out[7]) and np.isfinite(np.delete(out, 7)).all()


def test_a_missing_wait_leaves_the_copy_undone(run: Run) -> None:
    out, message = run("copy", True)
    assert message == "" and np.isnan(out).all()


def test_a_write_beyond_a_shared_array_is_an_error(run: Run) -> None:
    assert "a write beyond the end of an array of 256 bytes" in run("shared_write", True)[1]


def test_more_shared_memory_than_launched_with_is_an_error(run: Run) -> None:
    assert "272 bytes taken, 256 launched with" in run("too_much_shared", True)[1]


def test_more_shared_memory_than_the_device_has_is_an_error(run: Run, controls: Any) -> None:
    controls.configure(max_shared=128)
    assert "256 bytes of shared memory asked for, 128 there" in run("barrier")[1]


def test_a_misaligned_copy_is_an_error(run: Run) -> None:
    assert "cp.async: an address that is not a multiple of 16" in run("misaligned", True)[1]


def test_a_read_of_another_block_before_the_clusters_barrier_shows(run: Run, controls: Any) -> None:
    found = []
    for schedule in ("up", "down"):
        controls.configure(schedule=schedule)
        out, message = run("cluster", True)
        assert message == ""
        found.append(np.isnan(out).any())
    # nothing is there yet in one order at least
    assert any(found)


def test_a_divergent_cluster_is_an_error(run: Run) -> None:
    message = run("divergent_cluster", True)[1]
    assert "divergent barrier: 0 of 64 threads at __syncthreads, 0 at a warp operation, " in message
    assert "64 at the cluster's barrier, 0 returned" in message


def test_clusters_and_early_launches_need_sm_90(run: Run, controls: Any) -> None:
    controls.configure(sm_90=False)
    for name in ("cluster", "early"):
        assert "clusters and early launches need sm_90" in run(name)[1]


def test_a_read_before_the_wait_finds_nothing_written(run: Run, controls: Any) -> None:
    values = np.arange(THREADS, dtype=np.float32)
    controls.configure(unwritten=[(values.ctypes.data, values.nbytes)])
    for wrong in (False, True):
        out, message = run("early", wrong, values)
        assert message == ""
        assert np.isnan(out).all() if wrong else np.array_equal(out, values)
        # what the kernel in front writes is there in the end
        assert np.array_equal(values, np.arange(THREADS))
    assert controls.counters()["early_launches"] == 2


def test_a_kernel_that_never_waits_is_an_error(run: Run) -> None:
    assert "launched early, but it never waits for the kernel in front of it" in run("early", 2)[1]


def test_an_unknown_schedule_is_named(controls: Any) -> None:
    with pytest.raises(ValueError, match="schedule: expected up, down or random, got sideways"):
        controls.configure(schedule="sideways")


@pytest.mark.parametrize(("name", "wrong"), [("global_read", 0), ("global_read", 1), ("shared_write", 1)])
def test_an_access_out_of_bounds_is_caught_by_the_address_sanitizer(library: Path, name: str, wrong: int) -> None:
    preload = [
        subprocess.run(["g++", f"-print-file-name={lib}"], capture_output=True, text=True).stdout.strip()
        for lib in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(Path(path).is_file() for path in preload) or shutil.which("env") is None:
        pytest.skip("no address sanitizer beside g++")
    checked = build.compile_module("liteseg_emulator_asan", [build.HERE / "faults.cpp"], build.SANITIZE, ops=False)
    options = "ASAN_OPTIONS=detect_leaks=0,detect_stack_use_after_return=0"
    done = subprocess.run(
        ["env", f"LD_PRELOAD={' '.join(preload)}", options, sys.executable, "-c", SANITIZED, checked, name, str(wrong)],
        capture_output=True,
        text=True,
    )
    if wrong:
        assert done.returncode != 0 and "AddressSanitizer" in done.stderr
        assert "faults.cpp" in done.stderr or f"{name}_kernel" in done.stderr
    else:
        assert (done.returncode, done.stdout.strip()) == (0, "message:"), done.stderr


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("float16", torch.float16, 1e-6), ("bfloat16", torch.bfloat16, 1e-6), ("float32", torch.float32, 1e-6)],
)
def test_matrix_products(run: Run, controls: Any, name: str, dtype: torch.dtype, tolerance: float) -> None:
    chunk = 16 if dtype == torch.float32 else 32
    a, b = (torch.randn(16, chunk).to(dtype) for _ in range(2))
    out, message = run(name, False, a.float().numpy(), b.float().numpy(), size=256)
    assert message == ""
    expected = (a.double() @ b.double().T).numpy()
    assert np.abs(out.reshape(16, 16) - expected).max() <= tolerance * np.abs(expected).max()
    # the exact float32 product has no matrix instruction
    assert controls.counters()["matrix_products"] == (0 if dtype == torch.float32 else 4)


def test_tf32_products_round_their_operands(run: Run, controls: Any) -> None:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    a, b = torch.randn(16, 16), torch.randn(16, 16)
    out, _ = run("tf32", False, a.numpy(), b.numpy(), size=256)
    expected = (rounded(a).double() @ rounded(b).double().T).numpy()
    assert np.abs(out.reshape(16, 16) - expected).max() <= 1e-6 * np.abs(expected).max()
    exact = (a.double() @ b.double().T).numpy()
    assert np.abs(out.reshape(16, 16) - exact).max() > 1e-5 * np.abs(exact).max()
    assert controls.counters()["matrix_products"] == 4


def test_counters(run: Run, controls: Any) -> None:
    run("copy")
    counted = controls.counters()
    assert (counted["launches"], counted["blocks"], counted["barriers"]) == (1, 1, 1)
    assert counted["shared_copies"] == THREADS
