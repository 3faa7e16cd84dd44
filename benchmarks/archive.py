"""What comes back from a lent machine: one archive, in parts where it is large, and the summary page beside it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from liteseg.atomic import atomic_path

# what such a machine hands back: at most 8 files of 16 MiB, 64 MiB together
PART = 15 * 2**20
MOST_PARTS = 4
NAME = "gpu-day.tar.gz"


def pack(folders: dict[str, Path], leave_out: Iterable[str] = ()) -> bytes:
    """A gzip archive of the files in `folders`, each folder under its name; files whose name ends in one of `leave_out`
    stay here, as does what disappears while it is read."""
    # gzip: a checkpoint takes xz a minute and does not get smaller
    held = io.BytesIO()
    ends = tuple(leave_out)
    with tarfile.open(fileobj=held, mode="w:gz", compresslevel=3) as archive:
        for name, folder in folders.items():
            for path in sorted(folder.rglob("*")):
                if not path.is_file() or path.is_symlink() or (ends and path.name.endswith(ends)):
                    continue
                try:
                    archive.add(path, f"{name}/{path.relative_to(folder)}", recursive=False)
                except OSError:
                    continue
    return held.getvalue()


def publish(out: Path, folders: dict[str, Path], summary: Path | None, large: tuple[str, ...] = ()) -> list[Path]:
    """Write the archive and the summary to `out`, in place of what an earlier call wrote there.

    Args:
        folders: what goes into the archive.
        summary: page that is copied beside it, where there is one.
        large: ends of names that are left out where the archive would not fit into MOST_PARTS with them.

    Returns:
        The files written. An archive larger than PART is cut into `NAME.00`, `NAME.01`, ...: `cat` puts it together.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = pack(folders)
    notes = []
    if len(data) > MOST_PARTS * PART and large:
        notes.append(f"{len(data) / 1e6:.0f} MB were too much: files ending in {', '.join(large)} stayed behind")
        data = pack(folders, large)
    if len(data) > MOST_PARTS * PART:
        raise OSError(
            f"publish: folders: expected at most {MOST_PARTS * PART / 1e6:.0f} MB, got {len(data) / 1e6:.0f} MB"
        )
    parts = [data[i : i + PART] for i in range(0, len(data), PART)]
    names = [NAME] if len(parts) == 1 else [f"{NAME}.{i:02d}" for i in range(len(parts))]
    written = []
    for name, part in zip(names, parts, strict=True):
        with atomic_path(out / name) as partial:
            partial.write_bytes(part)
        written.append(out / name)
    for old in out.glob(f"{NAME}*"):
        if old not in written:
            old.unlink()
    if summary is not None and summary.is_file():
        with atomic_path(out / "summary.md") as partial:
            partial.write_text("\n".join([summary.read_text(), *notes]))
        written.append(out / "summary.md")
    return written


def unpack(archive: Path, folder: Path) -> list[str]:
    """Put the files of an archive into `folder`, each complete or not at all; their names."""
    names = []
    with tarfile.open(archive) as held:
        for member in held:
            target = (folder / member.name).resolve()
            if not member.isfile() or not target.is_relative_to(folder.resolve()):
                raise ValueError(f"unpack: archive: expected files below its folder, got {member.name!r} in {archive}")
            source = held.extractfile(member)
            assert source is not None
            with atomic_path(target) as partial:
                with partial.open("wb") as file:
                    shutil.copyfileobj(source, file)
                os.utime(partial, (member.mtime, member.mtime))
            target.chmod(member.mode & 0o777)
            names.append(member.name)
    return names
