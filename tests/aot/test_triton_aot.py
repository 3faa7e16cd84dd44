"""Every shipped Triton configuration compiles for real GPUs within its limits, checked without one.

benchmarks/results/aot.csv has the machine code's resources of all of them (`python -m tests.aot.report` writes it).
Here it is held against what the launchers launch today, and a sample is compiled again. In processes of their own: this
one interprets Triton kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _report(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "tests.aot.report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_table_is_complete_and_within_the_limits() -> None:
    pytest.importorskip("triton")
    done = _report("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_sample_compiles_to_what_the_table_says(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = _report("--sample", cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def report():
    pytest.importorskip("triton")
    # it takes TRITON_INTERPRET away, for a process that compiles; this one goes on interpreting
    interpret = os.environ.get("TRITON_INTERPRET")
    import tests.aot.report as module

    if interpret is not None:
        os.environ["TRITON_INTERPRET"] = interpret
    return module


GOOD = {
    **{"kernel": "k", "case": "c", "dtype": "float16", "target": "sm_90", "triton": "3.9.0", "tile": ""},
    **{"warps": 8, "stages": 1, "registers": 128, "stack": 0, "local_accesses": 0, "shared": 1024},
    **{"tensor_product": True, "matrix_instructions": 1, "wide_loads": 0, "loads": 0, "key": "0"},
}


def test_limits_name_what_is_over_them(report) -> None:
    assert report.Resources(**GOOD).faults() == []
    for change, text in (
        ({"stack": 8}, "spills"),
        ({"local_accesses": 2}, "spills"),
        ({"registers": 129}, "129 registers, more than 128"),
        ({"shared": 120_000}, "shared memory"),
        ({"matrix_instructions": 0}, "tensor-core"),
    ):
        (fault,) = report.Resources(**GOOD | change).faults()
        assert text in fault


def test_channels_last_maps_are_loaded_sixteen_bytes_at_a_time(report) -> None:
    # eight times as many loads, where the divisibility of channels and strides gets lost on its way to the compiler
    rows = report.read(ROOT / report.TABLE).values()
    for kernel in ("separable_conv2d_bwd_hidden_kernel", "upsample_concat_fwd_kernel"):
        assert any(row.wide_loads for row in rows if row.kernel == kernel and row.target == "sm_90"), kernel


def test_the_table_is_read_as_it_was_written(report, tmp_path: Path) -> None:
    rows = [report.Resources(**GOOD), report.Resources(**GOOD | {"key": "1", "tensor_product": False})]
    table = {(row.key, row.triton): row for row in rows}
    report.write(table, tmp_path / "aot.csv")
    assert report.read(tmp_path / "aot.csv") == table
    assert [file.name for file in tmp_path.iterdir()] == ["aot.csv"]


def test_a_spill_and_a_lost_instruction_are_found(report) -> None:
    class Compiled:
        def __init__(self, **change: object) -> None:
            self.row = report.Resources(**GOOD | change)

        def compile(self, *_: object):
            return self.row

    known = report.Resources(**GOOD)
    table = {(known.key, known.triton): known}
    assert report.compare(table, [(0, None, Compiled())]) == []
    spilled = report.compare(table, [(0, None, Compiled(stack=16))])
    assert len(spilled) == 2 and "spills" in spilled[0] and "stack: expected 0, got 16" in spilled[1]
    lost = report.compare(table, [(0, None, Compiled(matrix_instructions=0))])
    assert len(lost) == 2 and "tensor-core" in lost[0]
    assert report.faults({("0", "3.9.0"): Compiled(stack=4).row}, ("sm_90",))
