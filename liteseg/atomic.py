"""Writing a file, or a folder, whole or not at all: the one way in which this project writes what others read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder", "atomic_path", "remove_leftovers"]

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp(\.[^.]+)?")


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well and removed when it does not.

    Nobody ever sees half a file under the final name. The parent folders are made. The file may be read and written by
    whom the umask allows, whatever its writer would have chosen.

    Args:
        durable: the file's content is on the disk before it gets its name, so that it survives a power cut too.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: writers choose their format by it
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    try:
        # the system applies the umask to a file made here; some writers replace it by one with rights of its own
        temporary.touch(0o666)
        rights = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(rights)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place, and that of a folder there, when the block ends well."""
    final = Path(path)
    temporary, old = (final.with_name(f".{final.name}.{os.getpid()}.tmp{suffix}") for suffix in ("", ".old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.is_dir():
            os.replace(final, old)
        os.replace(temporary, final)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left unfinished in a folder that no other process writes to."""
    found = [path for path in Path(folder).glob(".*") if _LEFTOVER.fullmatch(path.name)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
