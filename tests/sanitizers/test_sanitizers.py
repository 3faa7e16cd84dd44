"""The CPU kernels under sanitizers, and that these find planted faults. `make sanitize` runs far more."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.build.project import copy
from tests.c_api import fuzz

from . import build

pytestmark = [pytest.mark.build, pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))]

# calls the op of each name: argument in turn
CALLS = """
import sys, torch, liteseg_kernels
for call in sys.argv[1:]:
    name, index = call.split(":")
    getattr(torch.ops.liteseg_faults, name)(torch.zeros(10), int(index))
"""
REPORTS = {
    "tensor": "AddressSanitizer: heap-buffer-overflow",
    "scratch": "AddressSanitizer: use-after-poison",
    "piece": "AddressSanitizer: use-after-poison",
    "maps": "AddressSanitizer: use-after-poison",
    "overflow": "runtime error: signed integer overflow",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a project whose only kernels are the planted faults."""
    project = copy(tmp_path_factory.mktemp("faults") / "project")
    kept = ("engine/runtime/arena.cpp", "torch/tensors.cpp")
    for source in (project / "csrc").rglob("*.cpp"):
        if source.relative_to(project / "csrc").as_posix() not in kept:
            source.unlink()
    shutil.copy(build.HERE / "faults.cpp", project / "csrc/torch")
    return build.build(project, project / "build")


def call(libraries: Path, *calls: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CALLS, *calls]
    return subprocess.run(command, cwd=build.ROOT, env=build.environment(libraries), capture_output=True, text=True)


def test_nothing_is_reported_without_a_fault(faulty: Path) -> None:
    # twice: what one call forbids must not stay so for the next
    right = call(faulty, *[f"{fault}:9" for fault in REPORTS] * 2)
    assert right.returncode == 0 and right.stderr == ""


@pytest.mark.parametrize("fault", REPORTS)
def test_a_planted_fault_ends_the_process(faulty: Path, fault: str) -> None:
    wrong = call(faulty, f"{fault}:10")
    assert wrong.returncode != 0 and REPORTS[fault] in wrong.stderr and "faults.cpp" in wrong.stderr


@pytest.mark.first
@pytest.mark.slow
def test_kernels_and_plans_run_clean() -> None:
    libraries = build.build()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no"]
    kernels = ("separable_conv2d", "inverted_residual", "upsample_concat")
    tests = [f"tests/kernels/test_{kernel}.py" for kernel in kernels]
    chosen = "(kernels and cpu and not interpreter) or logits or layouts or another_network or damaged"
    # large pictures take the branches of those around each threshold, at a hundred times the time
    chosen = f"({chosen}) and not (those_of_the_modules or exact_as_torchs or camvid)"
    done = subprocess.run(
        [*command, *tests, "tests/plan", "-k", chosen],
        cwd=build.ROOT,
        env=build.environment(libraries),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-6000:]


@pytest.mark.first
@pytest.mark.slow
def test_changed_network_files_run_clean(tmp_path: Path) -> None:
    """`make fuzz-plan` draws a million."""
    made = fuzz.program(tmp_path, build.build(), *fuzz.SANITIZERS)
    done = subprocess.run([str(made), "1000", "500", *fuzz.seeds(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no crash" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], subprocess.CompletedProcess[str]]:
    """team.cpp and pool.cpp under the thread sanitizer; `racing` lets stages read what others write."""
    if platform.machine() != "x86_64":
        pytest.skip("the thread sanitizer needs x86-64")
    program = tmp_path_factory.mktemp("team") / "team"
    runtime = build.ROOT / "csrc/engine/runtime"
    sources = [str(build.HERE / "team.cpp"), str(runtime / "team.cpp"), str(runtime / "pool.cpp")]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{build.ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(program)], check=True)
    return lambda racing: subprocess.run([str(program), str(int(racing))], capture_output=True, text=True)


def test_the_team_has_no_race(team: Callable[[bool], subprocess.CompletedProcess[str]]) -> None:
    done = team(False)
    assert done.returncode == 0 and done.stdout == "right\n" and done.stderr == ""


def test_a_planted_race_is_found(team: Callable[[bool], subprocess.CompletedProcess[str]]) -> None:
    done = team(True)
    assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr
