"""The CPU kernels under sanitizers, and that these find planted faults. `make sanitize` runs far more."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.build.project import copy

from . import build

pytestmark = [pytest.mark.build, pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))]

CALL = "import sys, torch, liteseg_kernels; getattr(torch.ops.liteseg_faults, sys.argv[1])(torch.zeros(10), {})"
REPORTS = {
    "tensor": "AddressSanitizer: heap-buffer-overflow",
    "scratch": "AddressSanitizer: use-after-poison",
    "maps": "AddressSanitizer: use-after-poison",
    "overflow": "runtime error: signed integer overflow",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a project whose only kernels are the planted faults."""
    project = copy(tmp_path_factory.mktemp("faults") / "project")
    kept = ("arena.cpp", "tensors.cpp")
    for source in (project / "csrc/cpu").glob("*.cpp"):
        if source.name not in kept:
            source.unlink()
    shutil.copy(build.HERE / "faults.cpp", project / "csrc/cpu")
    return build.build(project, project / "build")


@pytest.mark.parametrize("fault", REPORTS)
def test_a_planted_fault_ends_the_process(faulty: Path, fault: str) -> None:
    def call(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CALL.format(index), fault]
        return subprocess.run(command, cwd=build.ROOT, env=build.environment(faulty), capture_output=True, text=True)

    right = call(9)
    assert right.returncode == 0 and right.stderr == ""
    wrong = call(10)
    assert wrong.returncode != 0 and REPORTS[fault] in wrong.stderr and "faults.cpp" in wrong.stderr


@pytest.mark.slow
def test_kernels_and_plans_run_clean() -> None:
    libraries = build.build()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no"]
    kernels = ("separable_conv2d", "inverted_residual", "upsample_concat")
    tests = [f"tests/kernels/test_{kernel}.py" for kernel in kernels]
    chosen = "(kernels and cpu and not interpreter) or layouts or another_network or alternating or damaged"
    done = subprocess.run(
        [*command, *tests, "tests/plan/test_plan.py", "-k", chosen],
        cwd=build.ROOT,
        env=build.environment(libraries),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-6000:]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], subprocess.CompletedProcess[str]]:
    """team.cpp as a program under the thread sanitizer; `racing` lets its stages read what others write."""
    if platform.machine() != "x86_64":
        pytest.skip("the thread sanitizer needs x86-64")
    program = tmp_path_factory.mktemp("team") / "team"
    include = [f"-I{build.ROOT / 'csrc'}", "-isystem", str(Path(torch.__file__).parent / "include")]
    sources = [str(build.HERE / "team.cpp"), str(build.ROOT / "csrc/cpu/team.cpp")]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-pthread"]
    subprocess.run(["g++", *flags, *include, *sources, "-o", str(program)], check=True)
    return lambda racing: subprocess.run([str(program), str(int(racing))], capture_output=True, text=True)


def test_the_team_has_no_race(team: Callable[[bool], subprocess.CompletedProcess[str]]) -> None:
    done = team(False)
    assert done.returncode == 0 and done.stdout == "right\n" and done.stderr == ""


def test_a_planted_race_is_found(team: Callable[[bool], subprocess.CompletedProcess[str]]) -> None:
    done = team(True)
    assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr
