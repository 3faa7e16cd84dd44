"""Runs a section of a GPU day in a process of its own: with a time limit, again after a row that crashed or hung."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Any

from .rows import ROOT, Outcome, Sheet

_RESTARTS = 20
# exit code of a section that cannot go on in its process
DEVICE_FAULT = 75


@dataclasses.dataclass
class Result:
    """A section's part of the summary."""

    section: str
    status: str
    outcome: Outcome
    seconds: float
    detail: str = ""


def _kill(process: subprocess.Popen[str]) -> None:
    """The section with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _forward(stream: IO[str], log: Path, last: list[str]) -> None:
    with log.open("a") as file:
        for line in stream:
            file.write(line)
            file.flush()
            print(f"  {line}", end="", flush=True)
            if line.strip():
                last[:] = [line.strip()]


def _running(marker: Path) -> dict[str, Any] | None:
    """The row a section is at; None between two rows."""
    try:
        return json.loads(marker.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def supervise(section: str, command: list[str], place: Sheet, logs: Path, deadline: float) -> Result:
    """Run a section to its end: restart it after a row that crashed or hung (which is recorded so and not run again),
    and end it at the deadline."""
    started = time.time()
    outcome_file = logs / f"{section}-outcome.json"
    outcome_file.unlink(missing_ok=True)
    log = logs / f"{section}.txt"
    last: list[str] = []

    def result(detail: str = "") -> Result:
        # what is not known without this file is at least one failure
        found = Outcome(**json.loads(outcome_file.read_text())) if outcome_file.exists() else Outcome(failed=1)
        status = "failed" if found.failed or detail else "partial" if found.left else "ok"
        if status == "ok" and not found.ok:
            status = "skipped"
        return Result(section, status, found, time.time() - started, detail)

    for _ in range(_RESTARTS):
        place.marker.unlink(missing_ok=True)
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_forward, args=(process.stdout, log, last))
        reader.start()
        hung = late = False
        try:
            while process.poll() is None and not (hung or late):
                time.sleep(0.1)
                row = _running(place.marker)
                hung = row is not None and time.time() > row["started"] + row["limit"]
                late = time.time() > deadline + 5
            code = process.poll()
        finally:
            # also when this process is told to stop
            _kill(process)
            reader.join()
        if code == 0:
            return result()
        row = _running(place.marker)
        if row is not None and not late:
            status = "timeout" if hung else "crashed"
            detail = "took longer than its limit" if hung else f"exit code {code}: {''.join(last)}"
            print(f"  {status:<8}{', '.join(row['key'].values())}: {detail}", flush=True)
            place.add(row["key"], {"status": status, "detail": detail[:500]})
        elif not late and code != DEVICE_FAULT:
            return result(f"exit code {code}: {''.join(last)[:300]} (see {log.name})")
        if time.time() > deadline - 5:
            return result() if outcome_file.exists() else result("out of time before its first row")
    return result("too many restarts")
