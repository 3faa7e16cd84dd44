"""The product's own kernels with a mistake planted in the source: parity must not survive it.

Each mutant is compiled apart from the checkout and runs in a process of its own, for its ops have the same names.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import build

RUN = """
import sys, torch
from pathlib import Path
from tests.emulator import build
folder, source = Path(sys.argv[1]), sys.argv[2]
# compiled once each, run for milliseconds
library = build.compile_module("liteseg_mutant", [folder / "cuda" / source], ["-O0"], csrc=folder)
controls = build.import_module("liteseg_mutant", library)
torch.manual_seed(0)
x = torch.randn(1, 96, 9, 12).half().contiguous(memory_format=torch.channels_last)
depthwise, pointwise = torch.randn(96, 1, 3, 3).half() / 3, torch.randn(40, 96, 1, 1).half() / 10
expected = torch.conv2d(torch.conv2d(x.double(), depthwise.double(), padding=1, groups=96), pointwise.double())
for schedule, seed in (("up", 0), ("down", 0), ("random", 1), ("random", 2)):
    # small enough a grid to begin early, when the kernel in front has not written x yet
    controls.configure(schedule=schedule, seed=seed, unwritten=[(x.data_ptr(), x.nbytes)])
    out = torch.ops.liteseg_cuda.separable_conv2d(
        x, depthwise, pointwise, None, None, [1, 1], [1, 1], [1, 1], 0, 0.0, False
    )
    error = ((out.double() - expected).norm() / expected.norm()).item()
    print("parity" if error < 2e-3 else f"error {error}")
"""

MUTANTS = {
    "as it is": ("tile.cuh", "", ""),
    "no barrier before the product": (
        *("tile.cuh", "thread);\n      __syncthreads();\n      operand =", "thread);\n      operand ="),
    ),
    "no barrier behind the wait": ("tile.cuh", "any more\n      __syncthreads();", "any more"),
    "no wait for the copies": ("tile.cuh", "cp_async_wait<1>();", ""),
    "taps in place of others' taps": ("tile.cuh", "tap * S::kChunk + c", "c * count + tap"),
    "a tap of the wrong row": ("tile.cuh", "ky * window.y.tap", "(ky + 1) * window.y.tap"),
    "no wait for the kernel in front": ("separable.cuh", "wait_for_predecessor();", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MUTANTS))
def test_parity_fails_with_a_mistake_in_the_kernel(name: str, tmp_path: Path) -> None:
    if reason := build.missing():
        pytest.skip(reason)
    folder = tmp_path / "csrc"
    for part in ("cuda", "common"):
        shutil.copytree(build.ROOT / "csrc" / part, folder / part)
    file, before, after = MUTANTS[name]
    header = folder / "cuda/liteseg" / file
    text = header.read_text()
    assert text.count(before) == 1 or not before, f"the source has changed: {text.count(before)} places to plant it"
    header.write_text(text.replace(before, after) if before else text)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), "separable_conv2d.cu"], cwd=build.ROOT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    if name == "as it is":
        assert lines == ["parity"] * 4, done.stderr
    else:
        # what a schedule hides another shows
        assert any(line.startswith("error") for line in lines) or "emulator" in done.stderr, done.stderr
