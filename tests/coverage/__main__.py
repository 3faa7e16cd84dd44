"""`make coverage`: which branches of the kernels the parity tests take.

cpu     the C++ kernels and plans, on every instruction set of this machine, counted by gcov
cuda    the CUDA kernels, host code included, as the emulator compiles them, counted by gcov
triton  the Triton kernels and their launchers, in the interpreter, counted by coverage.py

The exit code is 1 where the parity tests take less than 95 % of the branches of a part. `--report` counts nothing and
shows the last counts; other arguments go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

from tests.emulator import build as emulator
from tests.sanitizers import build

from . import gcov

FOLDER = build.ROOT / "build/coverage"
TRITON = FOLDER / "triton"
LEAST = 95
KERNELS = "not interpreter and not emulator and not faults"
# the largest pictures take the same branches as those around each threshold, at a hundred times the time
PLAN = "not mutants and not faults and not those_of_the_modules and not exact_as_torchs and not camvid"


def _pytest(arguments: list[str], more: list[str], runner: tuple[str, ...] = (), **environment: str) -> None:
    command = [sys.executable, "-m", *runner, "pytest", "-q", "-p", "no:cacheprovider", *arguments, *more]
    done = subprocess.run(command, cwd=build.ROOT, env=os.environ | environment)
    if done.returncode != 0:
        sys.exit("coverage: expected parity tests that pass, got failures (see above): their branches say nothing")


def _cpu(more: list[str]) -> None:
    libraries = str(build.build(folder=FOLDER, how={"LITESEG_COVERAGE": "1"}))
    gcov.clear(FOLDER)
    # the last one is the best that there is
    for isa in ("scalar", "avx2", ""):
        arguments = ["tests/kernels", "tests/compiler/test_graphs.py", "-k", KERNELS]
        _pytest(arguments, more, LITESEG_LIBRARIES=libraries, LITESEG_CPU_ISA=isa)
    _pytest(["tests/plan", "-k", PLAN], more, LITESEG_LIBRARIES=libraries, LITESEG_FUZZ_SECONDS="30")


def _cuda(more: list[str]) -> None:
    gcov.clear(emulator.FOLDER)
    arguments = ["tests/kernels", "tests/emulator/test_layers.py", "tests/emulator/test_upsample_argmax.py"]
    _pytest([*arguments, "-k", "emulator and not faults"], more, LITESEG_COVERAGE="1")


def _triton(more: list[str]) -> None:
    TRITON.mkdir(parents=True, exist_ok=True)
    runner = ("coverage", "run", f"--data-file={TRITON}/data", "-m")
    _pytest(["tests/kernels", "-k", "interpreter and not faults"], more, runner)


def _gcov_share(branches: gcov.Branches) -> float:
    for line in gcov.table(branches):
        print(line)
    every = [one for taken in branches.values() for one in taken]
    print(f"{sum(every)} of {len(every)} branches taken")
    return 100 * sum(every) / max(1, len(every))


def _triton_share() -> float:
    command = [sys.executable, "-m", "coverage", "report", f"--data-file={TRITON}/data", "-m", "--precision=1"]
    told = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True).stdout
    print(told)
    return float(told.split()[-1].rstrip("%"))


PARTS: dict[str, tuple[Callable[[list[str]], None], Callable[[], float]]] = {
    "cpu": (_cpu, lambda: _gcov_share(gcov.read(FOLDER, ("csrc/engine/", "csrc/torch/")))),
    "cuda": (_cuda, lambda: _gcov_share(gcov.read(emulator.FOLDER, ("csrc/cuda/",)))),
    "triton": (_triton, _triton_share),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--report", action="store_true", help="show the last counts")
    arguments, more = parser.parse_known_args()
    shares = {}
    for part in arguments.parts:
        measure, share = PARTS[part]
        if not arguments.report:
            measure(more)
        print(f"== {part}")
        shares[part] = share()
        print(f"{part}: {shares[part]:.1f} % of branches taken", flush=True)
    return int(min(shares.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
