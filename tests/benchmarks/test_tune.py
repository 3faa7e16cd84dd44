"""benchmarks/tune.py: the whole way without a GPU, and its parts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import rows
from liteseg_kernels.triton import _tiles
from liteseg_kernels.triton._tiles import Key

pytest.importorskip("triton")


def _tune(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # this process interprets kernels, that one compiles them
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "benchmarks.tune", *arguments]
    return subprocess.run(command, cwd=rows.ROOT, env=environment, capture_output=True, text=True, check=False)


def test_dry_run_writes_a_table_with_rows_of_the_device(tmp_path: Path) -> None:
    output = tmp_path / "tiles.csv"
    done = _tune(tmp_path, "--dry-run", "--table", "upsample_argmax", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rows of sm_90, 1 to time on none" in done.stdout
    before, after = _tiles.read(), _tiles.read(output)
    (new,) = (row for row in after if row not in before)
    assert [row for row in after if row is not new] == before
    key, tile = _tiles.parsed(new)
    assert key == Key("upsample_argmax", "forward", "any", 0, 1, "sm_90")
    # a dry run measures nothing: the tile stays what it was
    assert tile == _tiles.table()[key._replace(target="any")]
    assert new["us"] and new["measured"].startswith("none, triton ")


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    if rows.environment()["driver"] != "none":
        pytest.skip("a CUDA device is there")
    done = _tune(tmp_path)
    assert done.returncode == 2 and "sees no CUDA device" in done.stderr
    done = _tune(tmp_path, "--dry-run")
    assert done.returncode == 2 and "--output: expected a file for a dry run" in done.stderr
