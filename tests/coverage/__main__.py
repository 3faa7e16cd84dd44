"""`make coverage`: which branches of csrc/cpu the parity tests take, counted by gcov.

Arguments go to pytest. What only refuses an argument (LITESEG_CHECK) does not count: tests/kernels holds its words. A
line that is compiled several times (templates, instruction sets, inlined copies) counts once, and a branch of it is
taken where any copy takes it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.sanitizers import build

FOLDER = build.ROOT / "build/coverage"
LEAST = 95
CONDITION = re.compile(r"\b(if|for|while|switch|case)\b|[?]|&&|[|][|]")
# the largest pictures take the same branches as those around each threshold, at a hundred times the time
TESTS = (
    ["tests/kernels", "-k", "cpu and not interpreter and not faults"],
    ["tests/plan", "-k", "not mutants and not faults and not those_of_the_modules and not exact_as_torchs"],
)
Branches = dict[tuple[str, int], list[bool]]


def measure(arguments: list[str]) -> None:
    """Run the parity tests with the counting library, on the best instruction set of this machine."""
    libraries = build.build(folder=FOLDER, how={"LITESEG_COVERAGE": "1"})
    for counts in FOLDER.rglob("*.gcda"):
        counts.unlink()
    for tests in TESTS:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments]
        subprocess.run(command, cwd=build.ROOT, env=os.environ | {"LITESEG_LIBRARIES": str(libraries)})


def read() -> Branches:
    """Whether each branch of each line of csrc/cpu was taken."""
    copies: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    for counts in sorted(FOLDER.rglob("*.gcda")):
        told = subprocess.check_output(["gcov", "-b", "-t", "-j", str(counts)], cwd=counts.parent, text=True)
        for file in json.loads(told)["files"]:
            path = Path(os.path.relpath(file["file"], build.ROOT)).as_posix()
            if not path.startswith("csrc/cpu/"):
                continue
            for line in file["lines"]:
                taken = [branch["count"] for branch in line["branches"] if not branch["throw"]]
                if taken:
                    copies[path, line["line_number"]].append(taken)
    merged: Branches = {}
    for place, instances in copies.items():
        # an instance that a function was inlined into several times holds its branches as often
        length = min(map(len, instances))
        merged[place] = [any(any(one[i::length]) for one in instances) for i in range(length)]
    return merged


def report(branches: Branches) -> float:
    """Print the share of branches taken by file, and the lines with others; return the share of all, in per cent."""
    sources = {path: (build.ROOT / path).read_text().splitlines() for path, _ in branches}
    counted = {place: taken for place, taken in branches.items() if _decides(sources[place[0]], place[1])}
    by_file: dict[str, list[bool]] = defaultdict(list)
    for (path, _), taken in sorted(counted.items()):
        by_file[path] += taken
    for path, taken in by_file.items():
        print(f"{sum(taken):5} of {len(taken):5}  {100 * sum(taken) / len(taken):5.1f} %  {path}")
    for (path, number), taken in sorted(counted.items()):
        if not all(taken):
            print(f"{path}:{number}: {sources[path][number - 1].strip()}")
    every = [one for taken in by_file.values() for one in taken]
    share = 100 * sum(every) / max(1, len(every))
    print(f"{sum(every)} of {len(every)} branches taken, {share:.1f} %")
    return share


def _decides(source: list[str], number: int) -> bool:
    """Whether line `number` holds a condition that is not a LITESEG_CHECK's; gcov also charges a line with what was
    inlined into it and with the release of what it holds."""
    if not CONDITION.search(source[number - 1]):
        return False
    for line in range(number - 1, max(0, number - 6) - 1, -1):
        if "LITESEG_CHECK(" in source[line]:
            return False
        if line < number - 1 and source[line].rstrip().endswith((";", "{", "}")):
            break
    return True


if __name__ == "__main__":
    if "--report" not in sys.argv:
        measure(sys.argv[1:])
    sys.exit(report(read()) < LEAST)
