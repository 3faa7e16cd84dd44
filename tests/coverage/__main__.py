"""`make coverage`: which branches of the kernels the parity tests take.

cpu     the C++ kernels and plans, on every instruction set of this machine, counted by gcov
cuda    the CUDA kernels, host code included, as the emulator compiles them, counted by gcov
triton  the Triton kernels and their launchers, in the interpreter, counted by coverage.py

The exit code is 1 where the parity tests take less than 95 % of the branches of a part, or where untaken.md does not
list what they leave of the CPU library. `--report` counts nothing and shows the last counts, `--resume` goes on
with them; other arguments go to pytest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.emulator import build as emulator
from tests.instruction_sets.order import BF16, HERE
from tests.sanitizers import build

from . import gcov, steps, untaken

FOLDER = build.ROOT / "build/coverage"
TRITON = FOLDER / "triton"
LEAST = 95
KERNELS = "not interpreter and not emulator and not faults"
# on instruction sets below the best one
CPU = "(cpu or graphs or every_value) and not interpreter and not faults"
EMULATOR = "emulator and not faults"
# the largest pictures take the same branches as those around each threshold, at a hundred times the time
LARGE = ("those_of_the_modules", "exact_as_torchs", "test_street", "736x1312", "1024x2048", "camvid")
# how much is drawn at random in some seconds depends on the machine, and so would the counts
PLAN = " and ".join(f"not {name}" for name in ("mutants", "faults", "test_random", *LARGE))
# libliteseg in the process of the tests: elsewhere it is not counted, and here it is not small
LIBRARY = " and ".join(
    f"not {name}" for name in ("every_instruction_set", "pages", "cmake", "program", "needs", "small")
)


def _cpu(more: list[str], resume: bool) -> None:
    libraries = str(build.build(folder=FOLDER, how={"LITESEG_COVERAGE": "1"}))
    todo = steps.of_files("tests/plan", PLAN)
    todo.append(steps.Step("tests/test_instruction_sets.py", "refused"))
    todo.append(steps.Step("tests/cli/test_quantize.py", "bfloat16"))
    todo.append(steps.Step("tests/c_api/test_c_api.py", f"{LIBRARY} and not shows and not crash"))
    for isa in BF16[: BF16.index(HERE)] if HERE in BF16 else ():
        todo.append(steps.Step("tests/plan/test_bf16.py", PLAN, {"LITESEG_CPU_ISA": isa}))
    # first on the best that there is
    for isa in ("", "avx2", "scalar"):
        tests = CPU if isa else KERNELS
        todo += steps.of_files("tests/kernels", tests, LITESEG_CPU_ISA=isa)
        todo.append(steps.Step("tests/compiler/test_graphs.py", tests, {"LITESEG_CPU_ISA": isa}))
    steps.run(FOLDER, todo, more, resume=resume, LITESEG_LIBRARIES=libraries)


def _cuda(more: list[str], resume: bool) -> None:
    todo = steps.of_files("tests/kernels", EMULATOR)
    todo += [steps.Step(f"tests/emulator/test_{name}.py", EMULATOR) for name in ("layers", "upsample_argmax")]
    steps.run(emulator.FOLDER, todo, more, resume=resume, LITESEG_COVERAGE="1")


def _triton(more: list[str], resume: bool) -> None:
    # coverage.py adds nothing to counts of code that has changed
    TRITON.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={TRITON}/data", "-m", "pytest", "-q"]
    command += ["-p", "no:cacheprovider", "tests/kernels", "-k", "interpreter and not faults", *more]
    if subprocess.run(command, cwd=build.ROOT).returncode != 0:
        sys.exit("coverage: expected parity tests that pass, got failures (see above): their branches say nothing")


def _gcov_share(folder: Path, *prefixes: str, accounted: bool) -> tuple[float, bool]:
    print(*steps.counted(folder), sep="\n")
    branches = gcov.read(folder, prefixes)
    told, wrong = untaken.compare(branches, untaken.listed(untaken.TABLE.read_text()), prefixes)
    print(*gcov.table(branches), *told, *wrong, sep="\n")
    every = [one for taken in branches.values() for one in taken]
    print(f"{sum(every)} of {len(every)} branches taken, {len(told)} lines listed, {len(wrong)} wrong")
    return 100 * sum(every) / max(1, len(every)), not (accounted and wrong)


def _triton_share() -> tuple[float, bool]:
    command = [sys.executable, "-m", "coverage", "report", f"--data-file={TRITON}/data", "-m", "--precision=1"]
    told = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True).stdout
    print(told)
    return float(told.split()[-1].rstrip("%")), True


PARTS: dict[str, tuple[Callable[[list[str], bool], None], Callable[[], tuple[float, bool]]]] = {
    "cpu": (_cpu, lambda: _gcov_share(FOLDER, "csrc/engine/", "csrc/torch/", accounted=True)),
    "cuda": (_cuda, lambda: _gcov_share(emulator.FOLDER, "csrc/cuda/", accounted=False)),
    "triton": (_triton, _triton_share),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--report", action="store_true", help="show the last counts")
    parser.add_argument("--resume", action="store_true", help="count only the files of tests that are not counted yet")
    arguments, more = parser.parse_known_args()
    good = True
    for part in arguments.parts:
        measure, share = PARTS[part]
        if not arguments.report:
            measure(more, arguments.resume)
        print(f"== {part}")
        percent, listed = share()
        good = good and listed and percent >= LEAST
        print(f"{part}: {percent:.1f} % of branches taken", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
