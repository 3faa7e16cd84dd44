"""The branches that no parity test takes, and why: the table in untaken.md against the counts."""

from __future__ import annotations

import re
from pathlib import Path

from . import gcov

TABLE = Path(__file__).resolve().parent / "untaken.md"
Listed = dict[tuple[str, str], str]


def listed(text: str) -> Listed:
    """The reason for each file and line of code in a table of Markdown."""
    rows: Listed = {}
    for line in text.splitlines():
        # a bar that belongs to a cell is written \|
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)[|]", line)[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            rows[cells[0].strip("`"), cells[1].removeprefix("`").removesuffix("`")] = cells[2]
    return rows


def compare(branches: gcov.Branches, rows: Listed, prefixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Lines with branches not taken, each with its reason; and where the table, of files under `prefixes`, is wrong.

    A line whose reason begins with "by chance" may be taken or not.
    """
    told, wrong, found = [], [], set()
    for place, taken in sorted(branches.items()):
        if all(taken):
            continue
        row = place[0], gcov.code(place)
        found.add(row)
        line = f"{place[0]}:{place[1]}: {taken.count(False)} of {len(taken)} not taken: {row[1]}"
        if row in rows:
            told.append(f"{line}\n    {rows[row]}")
        else:
            wrong.append(f"{line}\n    not listed in {TABLE.name}")
    for row, reason in rows.items():
        if row[0].startswith(prefixes) and row not in found and not reason.startswith("by chance"):
            wrong.append(f"{row[0]}: {row[1]}\n    listed in {TABLE.name}, but taken, or not there any more")
    return told, wrong
