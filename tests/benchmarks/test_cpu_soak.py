"""benchmarks/cpu_soak.py: memory stays flat over calls of changing sizes, and a leak would show."""

from __future__ import annotations

import csv
import mmap
from pathlib import Path

import pytest

from benchmarks import cpu_soak
from liteseg_kernels import _loader

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="no /proc")


@pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")
def test_memory_stays_flat(tmp_path: Path) -> None:
    out = tmp_path / "soak.csv"
    arguments = ["--sizes", "256x512", "90x160", "128x256", "--calls", "150", "--warm-up", "30", "--out", str(out)]
    assert cpu_soak.main(arguments) == 0
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["sizes"] == "256x512 90x160 128x256" and row["calls"] == "150"
    assert len(row["peak MB"].split()) == cpu_soak.READINGS
    assert float(row["grown MB"]) <= cpu_soak.LIMIT


def test_a_leak_shows() -> None:
    kept = []

    def leak(i: int) -> None:
        # pages of their own: the heap may still hold what an earlier test freed
        kept.append(mmap.mmap(-1, 200_000))
        kept[-1].write(bytes([i % 256]) * 200_000)

    row = cpu_soak.soak(leak, calls=50, warm_up=3)
    assert 8 < row["grown MB"] < 20
