"""Every shipped Triton configuration compiles for real GPUs within its limits, checked without one.

In a process of its own: this one interprets Triton kernels. `python -m tests.aot.report` is the full table.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _report(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "tests.aot.report", "--output", str(tmp_path / "aot.csv"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--target", "90", "--dtype", "float16"), id="sm_90 float16"),
        pytest.param(
            ("--target", "90", "--dtype", "float32", "--kernel", "separable_conv2d"),
            id="sm_90 float32 separable_conv2d",
        ),
        pytest.param(
            ("--target", "80", "--dtype", "bfloat16", "--kernel", "inverted_residual"),
            id="sm_80 bfloat16 inverted_residual",
            # the tile is chosen for sm_90, where it does not spill; sm_80 wants a row of its own
            marks=pytest.mark.xfail(reason="separable_conv2d_fwd_kernel 8x8x16x128 spills on sm_80", strict=True),
        ),
    ],
)
def test_every_configuration_compiles_within_the_limits(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("triton")
    done = _report(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "aot.csv").open()))
    assert len(rows) >= 5
    if "float16" in arguments:
        # eight times as many loads, where the divisibility of channels and strides gets lost on its way to the compiler
        for kernel in ("separable_conv2d_bwd_hidden_kernel", "upsample_concat_fwd_kernel"):
            assert any(int(row["wide_loads"]) for row in rows if row["kernel"] == kernel), f"{kernel}: no 16-byte load"


def test_limits_name_what_is_over_them() -> None:
    compiler = pytest.importorskip("tests.aot.compiler")
    names = {"target": "sm_90", "kernel": "k", "case": "c", "dtype": "float16", "tile": ""}
    counts = {"warps": 8, "stages": 1, "registers": 128, "stack": 0, "local_accesses": 0, "shared": 1024}
    code = {"tensor_product": True, "matrix_instructions": 1, "wide_loads": 0, "loads": 0}
    good = names | counts | code
    assert compiler.Resources(**good).faults() == []
    for change, text in (
        ({"stack": 8}, "spills"),
        ({"local_accesses": 2}, "spills"),
        ({"registers": 129}, "129 registers, more than 128"),
        ({"shared": 120_000}, "shared memory"),
        ({"matrix_instructions": 0}, "tensor-core"),
    ):
        (fault,) = compiler.Resources(**good | change).faults()
        assert text in fault
