"""The machine code of the CUDA library: no spills, matrix instructions where promised, and the committed table true."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from . import nvcc

# one group: the machine code is read once, not once a worker
pytestmark = pytest.mark.xdist_group("machine code")


@pytest.fixture(scope="module")
def rows() -> list[nvcc.Resources]:
    if reason := nvcc.missing():
        pytest.skip(reason)
    return nvcc.read()


def _committed() -> list[dict[str, str]]:
    with nvcc.TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_kernel_is_over_the_limits(rows: list[nvcc.Resources]) -> None:
    assert {row.kernel for row in rows} >= set(nvcc.PRODUCTS)
    assert {f"{r.target} {r.kernel}<{r.instance}>": r.faults() for r in rows if r.faults()} == {}


def test_the_committed_table_is_of_these_kernels(rows: list[nvcc.Resources]) -> None:
    """Registers may move with the compiler; what there is, and what it promises, may not without a new table."""
    committed = {(r["kernel"], r["instance"], r["target"]): r for r in _committed()}
    assert {(r.kernel, r.instance, r.target) for r in rows} == set(committed), "run python -m tests.aot.nvcc"
    for row in rows:
        before = committed[row.kernel, row.instance, row.target]
        for column in ("matrix_instructions", "copies_16", "loads_16"):
            assert (getattr(row, column) > 0) == (int(before[column]) > 0), f"{row.kernel}<{row.instance}>: {column}"


def test_the_code_of_half_precision_kernels_is_measured(rows: list[nvcc.Resources]) -> None:
    measured = {row.kernel for row in rows if row.measures is not None}
    assert measured >= set(nvcc.EARLY), "no machine code for sm_90, or without lines"
    assert all(int(row["instructions"]) > 0 for row in _committed() if row["kernel"] in nvcc.EARLY
               and row["target"] == "sm_90" and nvcc.MEASURED.search(row["instance"]))  # fmt: skip
    # the parts that the limits are about are found in the code, or nothing would be held
    for row in rows:
        if row.measures is not None and row.kernel == "inverted_residual_kernel":
            assert min(row.measures.strip_instructions, row.measures.hidden, row.measures.depthwise_instructions) > 0


@pytest.mark.parametrize(("target", "of"), [("sm_87", "sm_80"), ("sm_100", "sm_90"), ("sm_120", "sm_90")])
def test_gpus_without_machine_code_run_from_ptx(target: str, of: str, tmp_path: Path) -> None:
    ptxas = nvcc.tool("ptxas")
    if (reason := nvcc.missing()) or ptxas is None:
        pytest.skip(reason or "no ptxas")
    command = [str(nvcc.tool("cuobjdump")), "--extract-ptx", "all", str(nvcc.LIBRARY.resolve())]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    files = [path for path in tmp_path.glob("*.ptx") if f".target {of}" in path.read_text()[:2000]]
    # one for every source; the smallest stands for all, whose code is a minute's work for ptxas
    assert len(files) >= 9, f"no PTX for {of} in the library"
    smallest = min(files, key=lambda path: path.stat().st_size)
    done = subprocess.run(
        [ptxas, f"-arch={target}", "-v", smallest, "-o", tmp_path / "code"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "preprocess_kernel" in done.stderr and "0 bytes spill stores" in done.stderr


def test_faults_are_found() -> None:
    fields = {"kernel": "inverted_residual_kernel", "instance": "Fp16, 4", "target": "sm_90", "nvcc": ""}
    numbers = {name: 1 for name in nvcc.OWN if name not in fields} | {"stack": 0, "local_accesses": 0}
    assert nvcc.Resources(**fields, **numbers).faults() == []  # type: ignore[arg-type]
    for change, text in (
        ({"stack": 8}, "spills"),
        ({"local_accesses": 2}, "spills"),
        ({"matrix_instructions": 0}, "without a tensor-core instruction"),
        ({"copies_16": 0}, "no 16-byte copy"),
    ):
        found = nvcc.Resources(**fields, **(numbers | change)).faults()  # type: ignore[arg-type]
        assert len(found) == 1 and text in found[0]
    loads = nvcc.Resources(**(fields | {"kernel": "shuffle_unit_kernel"}), **(numbers | {"loads_16": 0}))  # type: ignore[arg-type]
    assert loads.faults() == ["no 16-byte load"]
    exact = nvcc.Resources(**(fields | {"instance": "Fp32, 4"}), **(numbers | {"matrix_instructions": 0}))  # type: ignore[arg-type]
    assert exact.faults() == []


def test_the_table_is_written_whole_or_not_at_all(rows: list[nvcc.Resources], tmp_path: Path) -> None:
    nvcc.write(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
