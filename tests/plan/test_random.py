"""Plans of networks drawn at random; `make fuzz` draws on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liteseg_kernels import _loader
from tests.instruction_sets.order import ORDER, here

from . import random_networks

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

# a draw takes some hundredths of a second, most of it in float64
SECONDS = float(os.environ.get("LITESEG_FUZZ_SECONDS", "4"))
FIRST = int(os.environ.get("LITESEG_FUZZ_FIRST", "0"))


@pytest.mark.parametrize("isa", ORDER)
def test_random_networks(isa: str) -> None:
    if isa not in here():
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-m", random_networks.__name__, "--isa", isa]
    # draws of their own for each
    command += ["--first", str(FIRST + 10**6 * ORDER.index(isa)), "--seconds", str(SECONDS)]
    environment = os.environ | {"LITESEG_CPU_ISA": isa}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and f"{isa}: " in done.stdout, done.stderr[-4000:]
