"""Files are written whole or not at all, and may be read by whom the umask allows, whoever writes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import liteseg
from liteseg.atomic import atomic_folder, atomic_path, remove_leftovers
from liteseg.image_io import write_image
from liteseg.models import export_official

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=["022", "077", "002"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture(scope="module")
def model() -> liteseg.models.LiteSeg:
    return liteseg.create_model("liteseg_mobilenetv2", 3)


def _write(kind: str, model: liteseg.models.LiteSeg, path: Path) -> None:
    if kind == "weights":
        liteseg.save_weights(model, path)
    elif kind == "official":
        export_official(model, path)
    elif kind == "checkpoint":
        pytest.importorskip("pytorch_lightning")
        from liteseg.train.checkpoint import AtomicCheckpointIO

        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    else:
        write_image(path, np.zeros((4, 4), np.uint8))


_NAMES = {"weights": "x.safetensors", "official": "x.pth", "checkpoint": "x.ckpt", "picture": "x.png"}


@pytest.mark.parametrize("kind", _NAMES)
def test_rights_follow_the_umask(kind: str, model: liteseg.models.LiteSeg, umask: int, tmp_path: Path) -> None:
    path = tmp_path / _NAMES[kind]
    _write(kind, model, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    # again, over a file of other rights
    path.chmod(0o600)
    _write(kind, model, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    with atomic_path(path) as file:
        file.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="power cut"), atomic_path(path) as file:
        file.write_text("half")
        raise RuntimeError("power cut")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["x.txt"]


def test_folders_too(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "frames"
    for name in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / name).touch()
        assert os.listdir(path) == [name] and os.listdir(path.parent) == ["frames"]
    with pytest.raises(RuntimeError, match="power cut"), atomic_folder(path) as folder:
        (folder / "half").touch()
        raise RuntimeError("power cut")
    assert os.listdir(path) == ["new"] and os.listdir(path.parent) == ["frames"]


def test_leftovers_of_killed_processes(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from liteseg.atomic import atomic_folder, atomic_path\n"
        "names = ('weights.safetensors', 'last.ckpt', 'noending')\n"
        "open_ones = [atomic_path(os.path.join(sys.argv[1], name)) for name in names]\n"
        "open_ones.append(atomic_folder(os.path.join(sys.argv[1], 'frames')))\n"
        "print([one.__enter__() for one in open_ones])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    kept = (".hidden", ".a.tmp", "weights.safetensors", ".mine.7.tmporary")
    for name in kept:
        (tmp_path / name).touch()
    assert len(os.listdir(tmp_path)) == 4 + len(kept)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "none")


def test_it_is_the_only_writer() -> None:
    own = re.compile(r"os\.replace|os\.rename|\.rename\(|\.replace\(\w*path|mkstemp|NamedTemporaryFile")
    files = [path for path in (ROOT / "liteseg").rglob("*.py") if path.name != "atomic.py"]
    assert files and not [str(path) for path in files if own.search(path.read_text(encoding="utf-8"))]
