"""The plan's own C++ with a mistake planted in it: the tests of large pictures must not survive it.

Each mutant is compiled apart from the checkout, and its library is loaded by a process of its own. That takes minutes:
it runs where LITESEG_MUTANTS=1 asks for it, after a change of those tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liteseg_kernels import _loader
from tests.build.project import copy
from tests.sanitizers import build

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(os.environ.get("LITESEG_MUTANTS") != "1", reason="compiles for minutes: set LITESEG_MUTANTS=1"),
    pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded"),
]

ROOT = Path(__file__).resolve().parents[2]
# file, what is there, what is put there instead: each between two slices of DASPP's channels
MUTANTS = {
    "a bias for every slice": ("sliced_daspp.cpp", "first && group == 0;", "group == 0;"),
    "no bias at all": ("sliced_daspp.cpp", "first && group == 0;", "false;"),
    "the first slice for all": ("sliced_daspp.cpp", "first ? nullptr : sum + p0 * g.filters", "nullptr"),
    "pooled sums begun anew": ("sliced_daspp.cpp", "first ? nullptr : pooled", "nullptr"),
}
# the base instruction set is compiled fastest
ISA = "scalar"
# only what a plan of a small network links
TEST = "tests/plan/test_large.py::test_slices_of_daspp"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose library is built; a mutant then compiles one file."""
    made = copy(tmp_path_factory.mktemp("mutants") / "project")
    build.build(made, made / "build", {"DEBUG": "1"})
    return made


def survives(project: Path) -> bool:
    libraries = build.build(project, project / "build", {"DEBUG": "1"})
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = inherited | {"LITESEG_LIBRARIES": str(libraries), "LITESEG_CPU_ISA": ISA}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "passed" in done.stdout or "failed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def test_mutants(project: Path) -> None:
    assert survives(project)
    for name, (file, before, after) in MUTANTS.items():
        source = project / "csrc/engine/kernels" / file
        text = source.read_text()
        assert text.count(before) == 1, f"{name}: the source has changed: {text.count(before)} places to plant it"
        source.write_text(text.replace(before, after))
        assert not survives(project), name
        source.write_text(text)
