"""benchmarks/cpu_busy.py: a row for every provider and team, and nothing left running."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu_busy

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and a system that lets a process choose one",
)


def test_a_row_for_every_provider_and_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    out = tmp_path / "busy.csv"
    cpu_busy.main(["--size", "64x64", "--rounds", "2", "--out", str(out)])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["provider"], row["team"]) for row in rows] == [
        (provider, str(team)) for provider in ("liteseg", "eager channels_last") for team in cpu_busy.TEAMS
    ]
    assert all(float(row["free ms"]) > 0 and float(row["busy ms"]) > 0 for row in rows)
    (busy,) = (process for process in started if sys.executable in process.args)
    assert busy.returncode is not None
