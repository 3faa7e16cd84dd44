"""Writing a file whole or not at all: the one way in which this project writes what others read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "remove_leftovers"]

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


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that killed processes left in a folder that no other process writes to."""
    found = [path for path in Path(folder).glob(".*") if _LEFTOVER.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
