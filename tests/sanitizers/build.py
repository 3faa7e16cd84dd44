"""The CPU kernels under the address and undefined-behaviour sanitizers, and interpreters that load them.

setup.py builds the same sources into a folder of their own (LITESEG_SANITIZE), `_loader` takes them from there
(LITESEG_LIBRARIES). Python itself is not instrumented, so the sanitizers' own libraries are loaded in front of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / "build/sanitizers"
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")


def missing() -> str | None:
    """Why the sanitizers cannot be used here."""
    if shutil.which("g++") is None:
        return "no g++ on PATH"
    absent = [name for name in RUNTIMES if not Path(_runtime(name)).is_absolute()]
    return f"g++ has no {', '.join(absent)}" if absent else None


def _runtime(name: str) -> str:
    # the name itself where there is no such file
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


SANITIZE = {"LITESEG_SANITIZE": "address,undefined"}


def build(project: Path = ROOT, folder: Path = FOLDER, how: Mapping[str, str] = SANITIZE) -> Path:
    """The folder with the CPU library of `project`, compiled in `folder`; only what changed is compiled.

    `how`: what setup.py is told besides, in its environment.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", f"{folder}/lib"]
    settings = {"LITESEG_BUILD": "cpu", "CXX": "g++", **how}
    done = subprocess.run(
        [*command, "--build-temp", f"{folder}/temp"],
        cwd=project,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the build for {' and '.join(how)} failed:\n{done.stdout[-4000:]}")
    return folder / "lib/liteseg_kernels"


def environment(libraries: Path) -> dict[str, str]:
    """Variables of an interpreter that runs the library in `libraries` and ends with the first report."""
    # a worker's own variables would make pytest in the child wait for a scheduler
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **inherited,
        "LITESEG_LIBRARIES": str(libraries),
        "LD_PRELOAD": " ".join(_runtime(name) for name in RUNTIMES),
        # the interpreter never frees all of its memory, and torch throws exceptions across stacks that were not watched
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
