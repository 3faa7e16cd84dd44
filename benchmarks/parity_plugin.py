"""Pytest plugin of the parity section: `-p benchmarks.parity_plugin`, in the controller and in xdist's workers.

Every outcome is written down at once, so that a run that is cut off has told what it found. A device fault or a hang
ends the worker it happened in, and xdist starts another one: tests that come later say what they would say alone.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# file of the outcomes, one JSON object a line
RECORD = "LITESEG_PARITY_RECORD"
# seconds after which a test hangs
LIMIT = "LITESEG_PARITY_LIMIT"
_WORLD = re.compile(r"\[(?:.*-)?(gpu-cuda|gpu-triton|gpu|emulator|interpreter)\b")
_ORDER = ("gpu-cuda", "emulator", "gpu-triton", "interpreter", "gpu")
_worker = os.environ.get("PYTEST_XDIST_WORKER")
_faulty = False
_stderr = sys.stderr


def world_of(name: str) -> str:
    """The world in a test's id; "" where it has none."""
    found = _WORLD.search(name)
    return found[1] if found else ""


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    # pytest catches what tests write to the file descriptor
    _stderr = os.fdopen(os.dup(2), "w")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What compiles nothing first, in every worker: each begins with a run of neighbours of this order."""
    items[:] = [item for item in items if world_of(item.nodeid)]
    items.sort(key=lambda item: _ORDER.index(world_of(item.nodeid)))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = [items[i] for first in range(workers) for i in range(first, len(items), workers)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    # a watchdog thread in C: also a kernel that never ends is left
    faulthandler.dump_traceback_later(float(os.environ.get(LIMIT, "60")), exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _faulty
    _faulty |= report.failed and "CUDA error" in str(report.longrepr)
    if _worker is None and RECORD in os.environ and (report.when == "call" or report.outcome != "passed"):
        reason = "" if report.passed else _reason(report)
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "reason": reason}
        with Path(os.environ[RECORD]).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:400]


def pytest_runtest_logfinish() -> None:
    if _worker is not None and _faulty:
        # the report is on its way
        time.sleep(0.5)
        os._exit(1)
