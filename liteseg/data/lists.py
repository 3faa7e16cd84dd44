"""List files: `image label` on each line, as they come from editors and machines of all kinds."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Text of a file in UTF-8 (with or without a byte order mark), UTF-16 (with one) or else Latin-1."""
    content = path.read_bytes()
    if content.startswith(_UTF_16):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_pairs(list_file: Path, root: Path) -> list[tuple[Path, Path]]:
    """Image and label of every line of a list, looked for under `root`.

    Columns are separated by a tab, or by spaces (names may then hold none); a semicolon at the end of a line and empty
    lines do not count. Backslashes separate folders too.

    Raises:
        ValueError: another number of columns, a file that is not there (list and line are named), or an empty list.
    """
    pairs = [_pair(f"{list_file}:{number}", line, root) for number, line in _lines(list_file)]
    if not pairs:
        raise ValueError(f"{list_file}: empty; expected `image label` per line")
    return pairs


def _lines(list_file: Path) -> Iterator[tuple[int, str]]:
    text = read_text(list_file).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        # some copies end each line with a semicolon
        line = line.strip().rstrip(";").rstrip()
        if line:
            yield number, line


def _pair(place: str, line: str, root: Path) -> tuple[Path, Path]:
    columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
    if len(columns) != 2:
        raise ValueError(f"{place}: expected `image label`, got {line!r}")
    return _resolve(place, "image", columns[0], root), _resolve(place, "label", columns[1], root)


def _resolve(place: str, what: str, entry: str, root: Path) -> Path:
    for name in (entry, entry.replace("\\", "/")):
        # lists made on another machine name absolute paths; the last two parts (train/name.png) are what counts
        for path in (root / name, root / Path(*Path(name).parts[-2:])):
            if path.is_file():
                return path
    raise ValueError(f"{place}: {what} not found: {root / entry}")
