"""Another size or batch compiles nothing again. In a process of its own: this one interprets Triton kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_another_size_compiles_nothing() -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.aot.specialisations"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 3
    for network, counted in found.items():
        first, *others = counted.items()
        # what is counted is all that Triton would compile
        assert len(set(first[1])) >= 9 and len(others) == 3, (network, first)
        assert {what: names for what, names in others if names} == {}, network
