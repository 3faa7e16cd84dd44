"""Runs parity tests file by file, each in a process of its own, and keeps which files were counted.

gcov writes the counts of a process when it exits by itself: one that is killed, crashes or leaves by `os._exit` loses
all of them. So no step is long, each must have written counts, and a count that was cut off goes on with `resume`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from liteseg.atomic import atomic_path

from . import gcov

ROOT = Path(__file__).resolve().parent.parent.parent

# pytest found no test that was asked for
NOTHING = 5


@dataclass(frozen=True)
class Step:
    """The tests of `file` whose names match `only` (pytest's -k), with more in the environment."""

    file: str
    only: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        told = self.environment.get("LITESEG_CPU_ISA")
        return f"{self.file} [{told}]" if told else self.file


def of_files(folder: str, only: str, **environment: str) -> list[Step]:
    """A step for every test file in a folder of tests."""
    files = sorted((ROOT / folder).glob("test_*.py"))
    return [Step(file.relative_to(ROOT).as_posix(), only, environment) for file in files]


def run(folder: Path, steps: Iterable[Step], more: Sequence[str], *, resume: bool, **environment: str) -> None:
    """Count anew, or with `resume` what `folder` does not hold the counts of; ends the program where a test fails."""
    record = folder / "steps.json"
    done = _read(record) if resume else {}
    if not done:
        gcov.clear(folder)
    for step in steps:
        state = _digest([ROOT / step.file], step.only, *more)
        if done.get(step.name, {}).get("state") == state:
            continue
        start = time.time()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", step.file, "-k", step.only, *more]
        ended = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment | step.environment, stdout=subprocess.PIPE, text=True
        )
        told = (ended.stdout.strip().splitlines() or ["nothing"])[-1]
        if ended.returncode not in (0, NOTHING):
            print(ended.stdout)
            sys.exit(
                f"coverage: {step.name}: expected parity tests that pass, got failures: their branches say nothing"
            )
        written = sum(counts.stat().st_mtime >= start for counts in folder.rglob("*.gcda"))
        if not written and ended.returncode != NOTHING and " passed" in told:
            sys.exit(f"coverage: {step.name}: expected counts, got none: its process did not exit by itself")
        done[step.name] = {"state": state, "told": told, "written": written}
        with atomic_path(record) as file:
            file.write_text(json.dumps({"sources": _sources(), "steps": done}, indent=1))
        print(f"{step.name}: {told}, {written} files of counts", flush=True)


def counted(folder: Path) -> list[str]:
    """What has been counted in `folder`, a line each file of tests."""
    told = _read(folder / "steps.json")
    return [f"{name}: {step['told']}, {step['written']} files of counts" for name, step in told.items()]


def _read(record: Path) -> dict[str, dict[str, str | int]]:
    if not record.is_file():
        return {}
    told = json.loads(record.read_text())
    # counts of other sources do not fit these
    return told["steps"] if told["sources"] == _sources() else {}


def _sources() -> str:
    return _digest(path for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file())


def _digest(files: Iterable[Path], *words: str) -> str:
    state = hashlib.sha256("\n".join(words).encode())
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest()
