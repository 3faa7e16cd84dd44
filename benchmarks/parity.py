"""The parity section of a GPU day: every kernel's tests, on Triton and on CUDA, in one run of pytest over all cores."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from . import parity_plugin as plugin
from .day import Day
from .rows import ROOT, Row, Values

_BACKENDS = {"gpu-cuda": "cuda", "emulator": "cuda", "gpu-triton": "triton", "interpreter": "triton", "gpu": "auto"}
# of one worker a test, and of what is left for saying what was found
_TEST_LIMIT, _MARGIN = 90.0, 6.0


def parity(day: Day) -> Iterator[Row]:
    """One row for all; what it found is written as a row a file and backend."""
    left = max(day.deadline - time.time(), 10.0)
    limit = 600.0 if day.deadline == float("inf") else left
    key = {"check": "parity", "case": "all"}
    yield Row(key, lambda: _parity(day, limit - _MARGIN), cost=min(30.0, limit - _MARGIN), limit=limit + 60)


def _command(day: Day) -> list[str]:
    tests = [str(ROOT / "tests/kernels")]
    # a dry run takes one small case of one file
    chosen = ["-m", "gpu"] if not day.dry else ["-k", "batch and (interpreter or emulator)"]
    if day.dry:
        tests = [str(ROOT / "tests/kernels/test_upsample_argmax.py")]
    workers = min(14, os.cpu_count() or 1) if not day.dry else 2
    spread = ["-n", str(workers), "--dist", "worksteal", "--max-worker-restart", "40"]
    spread = spread if importlib.util.find_spec("xdist") else []
    options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.parity_plugin", "--no-header", "-W", "ignore"]
    return [sys.executable, "-m", "pytest", *tests, *chosen, *options, *spread]


def _parity(day: Day, seconds: float) -> Values:
    record, log = day.logs / "parity.jsonl", day.logs / "parity-pytest.txt"
    record.unlink(missing_ok=True)
    variables = {
        **os.environ,
        plugin.RECORD: str(record),
        plugin.LIMIT: str(_TEST_LIMIT),
        # float32 means float32 where PyTorch's own convolutions stand in for a kernel
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    if day.plan == "short":
        variables["LITESEG_PARITY"] = "each"
    late = False
    with log.open("w") as out:
        process = subprocess.Popen(
            _command(day), cwd=ROOT, env=variables, stdout=out, stderr=out, start_new_session=True
        )
        try:
            process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = read(record)
    if not found:
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        raise RuntimeError(f"pytest ended with exit code {process.returncode} before its first test: {''.join(last)}")
    lines = summarise(found)
    counts = {name: sum(line["counts"][name] for line in lines) for name in ("passed", "failed", "skipped")}
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    status = "failed" if counts["failed"] else "ok"
    if late:
        status, text = "timeout", f"out of time after {text}"
    elif process.returncode not in (0, 1):
        status, text = "failed", f"pytest's exit code {process.returncode} after {text}"
    return {"status": status, "detail": text, "lines": [{k: v for k, v in x.items() if k != "counts"} for x in lines]}


def read(record: Path) -> list[dict[str, str]]:
    """The outcomes that were written down; a line that was cut off is not."""
    found = []
    for line in record.read_text().splitlines() if record.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def summarise(outcomes: list[dict[str, str]]) -> list[Values]:
    """A row for each file and backend, with the first failures in its detail."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for outcome in outcomes:
        file = Path(outcome["test"].split("::")[0]).stem.removeprefix("test_")
        groups[file, _BACKENDS.get(plugin.world_of(outcome["test"]), "")].append(outcome)
    lines = []
    for (file, backend), group in sorted(groups.items()):
        # a worker that died reports its test once more
        latest = {outcome["test"]: outcome for outcome in sorted(group, key=lambda x: x["outcome"] == "failed")}
        counts = {name: sum(x["outcome"] == name for x in latest.values()) for name in ("passed", "failed", "skipped")}
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        bad = [f"{x['test'].split('::')[-1]}: {x['reason']}" for x in latest.values() if x["outcome"] == "failed"]
        reasons = sorted({x["reason"] for x in latest.values() if x["outcome"] == "skipped"})
        status = "failed" if bad else "ok" if counts["passed"] else "skipped"
        detail = "; ".join([text, *bad[:4], *(reasons[:2] if status == "skipped" else [])])
        seconds = sum(float(x["seconds"]) for x in latest.values())
        values = {"case": file, "backend": backend, "status": status, "detail": detail[:900], "seconds": seconds}
        lines.append({**values, "counts": counts})
    return lines
