"""The install matrix itself, on cases that compile nothing and fetch nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .__main__ import NO_ISOLATION, PIP, Case, Matrix, table

pytestmark = pytest.mark.build


def test_refusals_count_only_with_their_remedy(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, sys.executable, uv=None)
    command = (*PIP, NO_ISOLATION, "{source}")
    right = Case("right", command, "refused", "a C++ compiler that works", {"CXX": "false"})
    wrong = Case("wrong", command, "refused", "another remedy", {"CXX": "false"})
    outcomes = [matrix.run(case) for case in (right, wrong)]
    assert outcomes[0] == "refused" and outcomes[1].startswith("failed: ")
    assert matrix.run(Case("uv", ("uv", "pip", "install"))) == "not run: no uv"
    shown = table([(right, "3.11, 2.13", outcomes[0]), (wrong, "3.11, 2.13", outcomes[1])]).splitlines()
    assert shown[2] == f"| right | `CXX=false {' '.join((*PIP, NO_ISOLATION))} .` | 3.11, 2.13 | refused |"
    assert "**failed: " in shown[3] and shown[3].endswith("(expected: refused) |")
