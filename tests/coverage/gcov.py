"""Reads what gcov counted: whether each branch of each line was taken.

What only refuses an argument (LITESEG_CHECK) does not count: tests/kernels holds its words. A line that is compiled
several times (templates, instruction sets) counts once, and a branch of it is taken where any copy takes it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONDITION = re.compile(r"\b(if|for|while|switch|case)\b|[?]|&&|[|][|]")
Branches = dict[tuple[str, int], list[bool]]


def read(folder: Path, prefixes: tuple[str, ...]) -> Branches:
    """The branches of the sources under `prefixes`, from the counts in `folder`."""
    copies: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    for counts in sorted(folder.rglob("*.gcda")):
        told = subprocess.check_output(["gcov", "-b", "-t", "-j", str(counts)], cwd=counts.parent, text=True)
        found = json.loads(told)
        # names are from where the compiler ran
        ran = Path(found["current_working_directory"])
        for file in found["files"]:
            path = Path(os.path.relpath(ran / file["file"], ROOT)).as_posix()
            if not path.startswith(prefixes):
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
    return {place: taken for place, taken in merged.items() if _decides(place)}


def clear(folder: Path) -> None:
    """Forget the counts in `folder`."""
    for counts in folder.rglob("*.gcda"):
        counts.unlink()


def table(branches: Branches) -> Iterable[str]:
    """The share of branches taken by file, and the lines with others."""
    by_file: dict[str, list[bool]] = defaultdict(list)
    for (path, _), taken in sorted(branches.items()):
        by_file[path] += taken
    for path, taken in by_file.items():
        yield f"{sum(taken):5} of {len(taken):5}  {100 * sum(taken) / len(taken):5.1f} %  {path}"
    for (path, number), taken in sorted(branches.items()):
        if not all(taken):
            yield f"{path}:{number}: {_lines(path)[number - 1].strip()}"


def _lines(path: str) -> list[str]:
    return (ROOT / path).read_text().splitlines()


def _decides(place: tuple[str, int]) -> bool:
    """Whether a line holds a condition that is not a LITESEG_CHECK's; gcov also charges a line with what was inlined
    into it and with the release of what it holds."""
    source, number = _lines(place[0]), place[1]
    if not CONDITION.search(source[number - 1]):
        return False
    for line in range(number - 1, max(0, number - 6) - 1, -1):
        if "LITESEG_CHECK(" in source[line]:
            return False
        if line < number - 1 and source[line].rstrip().endswith((";", "{", "}")):
            break
    return True
