"""The parity suite of the CPU kernels on the instruction sets below the one that the processor would choose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from liteseg_kernels import _loader
from tests.instruction_sets.order import ORDER, here

ROOT = Path(__file__).resolve().parent.parent


def test_names_of_no_instruction_set_are_refused() -> None:
    reason = _loader.missing("cpu")
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-c", "import torch, liteseg_kernels; torch.ops.liteseg_cpu.isa()"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"LITESEG_CPU_ISA": "sse9"}, capture_output=True, text=True
    )
    assert re.search("LITESEG_CPU_ISA: expected scalar.* or amx, got sse9", done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("isa", ORDER[:2])
def test_kernels_agree_with_the_reference(isa: str) -> None:
    reason = _loader.missing("cpu")
    if reason is not None:
        pytest.skip(reason)
    if isa not in here()[:-1]:
        pytest.skip(f"this process runs on {torch.ops.liteseg_cpu.isa()}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu and not interpreter"]
    # a worker's own variables would make the child wait for a scheduler
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["LITESEG_CPU_ISA"] = isa
    done = subprocess.run([*command, "tests/kernels"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]
