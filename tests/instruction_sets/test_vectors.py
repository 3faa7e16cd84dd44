"""The vectors of every instruction set against single numbers: NaN, infinities, subnormals, every half, partial; and
those of bytes."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.build.project import ROOT

from . import aarch64

TABLE = (ROOT / "csrc/engine/instruction_sets.txt").read_text().splitlines()
ROWS = [line.split() for line in TABLE if not line.startswith("#")]
# of these kernels, what tests their vectors
SOURCES = {"kernels": "vectors.cpp", "kernels/int8": "bytes.cpp"}
# (source, name) -> its header, machines and flags
SETS = {(SOURCES[row[2]], row[0]): (row[1], *row[3:]) for row in ROWS if row[2] in SOURCES}


@pytest.mark.parametrize(("source", "name"), SETS)
def test_vectors(source: str, name: str, tmp_path: Path) -> None:
    (simd, machines, flags), program = SETS[source, name], tmp_path / "vectors"
    here = machines == "any" or platform.machine().lower() in machines.split(",")
    if not here and ("aarch64" not in machines.split(",") or aarch64.missing()):
        pytest.skip(aarch64.missing() or f"nothing here runs {name}")
    compiler = [os.environ.get("CXX") or "g++"] if here else [f"{aarch64.PREFIX}-g++", "-static"]
    fused = f"-DLITESEG_FUSED={int(name != 'scalar')}"
    names = [f"-DLITESEG_ISA={name}", f"-DLITESEG_SIMD={simd}", fused]
    own = [] if flags == "none" else flags.split(",")
    # the compiler is not to fuse what the header does not
    options = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    aarch64.checked([*compiler, *options, *names, *own, Path(__file__).with_name(source), "-o", program])
    done = subprocess.run([program] if here else ["qemu-aarch64", program], capture_output=True, text=True)
    if done.returncode == -4:
        pytest.skip(f"this processor has no {name}")
    assert done.returncode == 0 and done.stdout.endswith(" 0 differences\n"), done.stdout[-3000:] + done.stderr
