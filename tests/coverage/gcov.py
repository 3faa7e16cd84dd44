"""Reads what gcov counted: whether each branch of each line was taken.

What does not count, since no parity test can take it: what only refuses an argument (LITESEG_CHECK; tests/kernels holds
its words), what only follows where the system has no memory left (std::bad_alloc), and the edges of exceptions and of
what the compiler adds to a line without a condition.

A line that is compiled several times (templates, instruction sets, what a lambda became in each caller) counts once,
and a branch of it is taken where any copy takes it. Copies in which the compiler has decided a condition, so that there
are fewer branches, count by themselves.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DECISION = re.compile(r"\b(?:if|for|while|switch|case)\b|[?]")
JOINED = re.compile(r"&&|[|][|]")
Branches = dict[tuple[str, int], list[bool]]


def read(folder: Path, prefixes: tuple[str, ...]) -> Branches:
    """The branches of the sources under `prefixes`, from the counts in `folder`."""
    copies: dict[tuple[str, int], list[list[bool]]] = defaultdict(list)
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
                place = path, line["line_number"]
                taken = _decided(line["branches"])
                if taken and _decides(place):
                    # the copies of a function come by themselves, those of a lambda all in one
                    each = len(taken) if "function_name" in line else _outcomes(place)
                    each = each if len(taken) % each == 0 else len(taken)
                    copies[place] += [taken[i : i + each] for i in range(0, len(taken), each)]
    return {place: _merged(taken) for place, taken in copies.items()}


def _decided(branches: Sequence[dict[str, int]]) -> list[bool]:
    """Which branches were taken, without both ways out of each call that may throw."""
    kept: list[bool] = []
    for branch, after in itertools.zip_longest(branches, branches[1:]):
        if not (branch["throw"] or (branch["fallthrough"] and after and after["throw"])):
            kept.append(branch["count"] > 0)
    return kept


def _merged(copies: Sequence[Sequence[bool]]) -> list[bool]:
    alike: dict[int, list[bool]] = {}
    for taken in copies:
        seen = alike.get(len(taken), [False] * len(taken))
        alike[len(taken)] = [before or now for before, now in zip(seen, taken, strict=True)]
    return [one for _, taken in sorted(alike.items()) for one in taken]


def clear(folder: Path) -> None:
    """Forget the counts in `folder`."""
    for counts in folder.rglob("*.gcda"):
        counts.unlink()


def table(branches: Branches) -> Iterable[str]:
    """The share of branches taken by file."""
    by_file: dict[str, list[bool]] = defaultdict(list)
    for (path, _), taken in sorted(branches.items()):
        by_file[path] += taken
    for path, taken in by_file.items():
        yield f"{sum(taken):5} of {len(taken):5}  {100 * sum(taken) / len(taken):5.1f} %  {path}"


def code(place: tuple[str, int]) -> str:
    """The text of a line."""
    return _lines(place[0])[place[1] - 1].strip()


@functools.cache
def _lines(path: str) -> list[str]:
    return (ROOT / path).read_text().splitlines()


def _decides(place: tuple[str, int]) -> bool:
    """Whether a line holds a condition that counts; gcov also charges a line with what was inlined into it and with the
    release of what it holds."""
    source, number = _lines(place[0]), place[1]
    text = source[number - 1]
    if not (DECISION.search(text) or JOINED.search(text)):
        return False
    if number < len(source) and "throw std::bad_alloc" in source[number]:
        return False
    for line in range(number - 1, max(0, number - 6) - 1, -1):
        if "LITESEG_CHECK(" in source[line]:
            return False
        if line < number - 1 and source[line].rstrip().endswith((";", "{", "}")):
            break
    return True


def _outcomes(place: tuple[str, int]) -> int:
    """How many branches the condition in a line has where the compiler decides nothing."""
    source, number = _lines(place[0]), place[1]
    text = source[number - 1]
    if "switch" in text:
        end = text[: len(text) - len(text.lstrip())] + "}"
        last = next(i for i in range(number, len(source)) if source[i].startswith(end))
        return sum(line.lstrip().startswith(("case ", "default:")) for line in source[number:last])
    return 2 * (max(1, len(DECISION.findall(text))) + len(JOINED.findall(text)))
