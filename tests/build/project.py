"""Copies of the project to build in, so that no test touches the checkout's own libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE")
GENERATED = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__", "*.pyc", ".*")

# one source that needs no torch library, and a header that it depends on
TINY_SOURCE = (
    '#include "common/tiny.h"\nextern "C" __attribute__((visibility("default"))) int tiny() { return TINY; }\n'
)


def copy(target: Path, *, tiny: bool = False) -> Path:
    """The project in `target`, without anything generated; `tiny`: with a single small C++ source."""
    for name in ("liteseg_kernels", "liteseg", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=GENERATED)
    for name in FILES:
        shutil.copy(ROOT / name, target / name)
    if tiny:
        shutil.rmtree(target / "csrc")
        (target / "csrc/torch").mkdir(parents=True)
        (target / "csrc/engine").mkdir()
        shutil.copy(ROOT / "csrc/engine/instruction_sets.txt", target / "csrc/engine")
        (target / "csrc/common").mkdir()
        (target / "csrc/torch/tiny.cpp").write_text(TINY_SOURCE)
        (target / "csrc/common/tiny.h").write_text("#define TINY 1\n")
    return target


def objects(project: Path) -> dict[str, Path]:
    """Of the CPU library in `project`, by name those that were compiled last, with whatever flags."""
    compiled = (project / "build/kernels/_C").glob("*/*.o")
    return {file.name: file for file in sorted(compiled, key=lambda file: file.stat().st_mtime)}


def environment(**more: str) -> dict[str, str]:
    """The calling environment without its build settings, and `more`."""
    settings = ("CXX", "CUDA_HOME", "DEBUG")
    return {k: v for k, v in os.environ.items() if not k.startswith("LITESEG_") and k not in settings} | more


def python(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """This interpreter in `folder`, in `environment(**more)`."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(**more), capture_output=True, text=True
    )


def build_info(folder: Path) -> dict[str, object]:
    """The values of the _build_info.py in `folder`."""
    values: dict[str, object] = {}
    exec((folder / "liteseg_kernels/_build_info.py").read_text(), values)
    return values
