"""Everything that is to be known from a GPU, in one command: `make gpu-day`, or `python -m benchmarks.gpu_day`.

Sections run one after another, each in a process of its own with a time limit, so that one that fails, crashes or
hangs leaves the others alone. Results are appended to benchmarks/results/<device>-*.csv row by row; rows that are there
for the same sources are not run again, so a call that ran out of time is simply repeated. `--dry-run` takes the whole
way on the CPU with tiny shapes: Triton in its interpreter, CUDA kernels in the emulator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import report, rows
from .rows import ROOT, Outcome, Row, Sheet

# where the rows come from, which CSV they go to, and the most seconds a section may take beside others. In the
# order of what one wants to know of a day that ends early: does it build, is it right, how fast are the networks
SECTIONS: dict[str, tuple[str, str, int]] = {
    "build": ("machine", "checks", 240),
    "info": ("machine", "checks", 60),
    "ceilings": ("speed", "ceilings", 40),
    "parity": ("checks", "checks", 200),
    "networks": ("speed", "networks", 150),
    "ops": ("speed", "ops", 150),
    "graphs": ("checks", "checks", 90),
    "training": ("speed", "training", 120),
    "large": ("checks", "checks", 90),
    "sanitizer": ("checks", "checks", 150),
}
# a call on the GPU machine may take 600 s; a dry run measures nothing and may take its time
BUDGET = 540
DRY_BUDGET = 1800
_RESTARTS = 20
# exit code of a section that cannot go on in its process
_DEVICE_FAULT = 75


def sheet(section: str, results: Path, logs: Path) -> Sheet:
    kind = SECTIONS[section][1]
    columns, key = (rows.CHECK, rows.CHECK_KEY) if kind == "checks" else (rows.SPEED, rows.SPEED_KEY)
    path = results / f"{rows.slug(rows.environment()['device'])}-{kind}.csv"
    return Sheet(path, columns, key, logs / f"{section}-running.json")


# --- in the process of a section


def run_section(arguments: argparse.Namespace) -> None:
    """The child's side: run the rows, leave the outcome in a file."""
    from .day import Day

    day = Day.make(arguments.dry_run, arguments.results, arguments.logs)
    section = arguments.child
    module = importlib.import_module(f".{SECTIONS[section][0]}", __package__)
    found: Iterator[Row] = getattr(module, section)(day)
    chosen = [row for row in found if arguments.only in row.name]
    place = sheet(section, day.results, day.logs)

    def progress(outcome: Outcome) -> None:
        partial = day.logs / f"{section}-outcome.partial"
        partial.write_text(json.dumps(dataclasses.asdict(outcome)))
        os.replace(partial, day.logs / f"{section}-outcome.json")

    left = rows.run_rows(chosen, place, arguments.deadline, arguments.since, progress)
    (day.logs / f"{section}-left.txt").write_text("".join(f"{name}\n" for name in left))


def print_environment() -> None:
    import torch

    print(json.dumps({"cuda": torch.cuda.is_available(), "environment": rows.environment()}))


# --- in the process that starts them


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
        elif not late and code != _DEVICE_FAULT:
            return result(f"exit code {code}: {''.join(last)[:300]} (see {log.name})")
        if time.time() > deadline - 5:
            return result() if outcome_file.exists() else result("out of time before its first row")
    return result("too many restarts")


def publish(results: Path, logs: Path) -> None:
    """Copy results and logs to the folder OUT names, where one is set."""
    out = os.environ.get("OUT")
    if not out:
        return
    for folder, name in ((results, "results"), (logs, "logs")):
        if folder.is_dir():
            shutil.copytree(folder, Path(out) / name, dirs_exist_ok=True)


def _environment(dry: bool, logs: Path) -> dict[str, str]:
    """Environment of the device, in this process and for the sections; ends the command where there is no device."""
    # triton decides at its import whether kernels run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1" if dry else "0"
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--child", "environment"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        (logs / "environment.txt").write_text(done.stdout + done.stderr)
        sys.exit(f"gpu-day: torch does not start: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if not dry and not found["cuda"]:
        print("gpu-day: torch sees no CUDA device (--dry-run needs none, and shows no times)", file=sys.stderr)
        sys.exit(2)
    os.environ[rows.ENVIRONMENT_VARIABLE] = json.dumps(found["environment"])
    return found["environment"]


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu-day", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny shapes; checks this script")
    parser.add_argument("--budget", type=float, help=f"seconds this call may take (default {BUDGET})")
    parser.add_argument("--again", action="store_true", help="run rows again that are there already")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument("--results", type=Path, help="folder of the CSV files (default benchmarks/results)")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu-day", help="folder of the logs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--since", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    for section in arguments.sections:
        if section not in SECTIONS:
            parser.error(f"SECTION: expected one of {', '.join(SECTIONS)}, got {section!r}")
    if arguments.budget is None:
        arguments.budget = DRY_BUDGET if arguments.dry_run else BUDGET
    if arguments.budget <= 0:
        parser.error(f"--budget: expected a number above 0, got {arguments.budget:g}")
    return arguments


def _command(section: str, arguments: argparse.Namespace, results: Path, deadline: float, since: str) -> list[str]:
    command = [sys.executable, "-u", "-m", "benchmarks.gpu_day", "--child", section, "--results", str(results)]
    command += ["--logs", str(arguments.logs), "--deadline", str(deadline), "--since", since, "--only", arguments.only]
    return [*command, *(["--dry-run"] if arguments.dry_run else [])]


def main(given: Sequence[str] | None = None) -> int:
    """0: everything that ran passed; 1: something failed; 2: wrong arguments or no device."""
    arguments = _arguments(given)
    if arguments.child == "environment":
        print_environment()
        return 0
    if arguments.child:
        try:
            run_section(arguments)
        except rows.DeviceFault:
            return _DEVICE_FAULT
        return 0
    end = time.time() + arguments.budget
    since = rows.now() if arguments.again else ""
    arguments.logs = arguments.logs.resolve()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    if arguments.results is None and arguments.dry_run:
        arguments.results = arguments.logs / "dry-run"
        shutil.rmtree(arguments.results, ignore_errors=True)
    results = (arguments.results or ROOT / "benchmarks/results").resolve()
    environment = _environment(arguments.dry_run, arguments.logs)
    device = rows.slug(environment["device"])
    print("gpu-day:", ", ".join(f"{name} {value}" for name, value in environment.items()), flush=True)
    chosen = [section for section in SECTIONS if not arguments.sections or section in arguments.sections]
    done: list[Result] = []
    try:
        for section in chosen:
            left = end - time.time()
            if left < 10:
                done.append(Result(section, "partial", Outcome(left=1), 0.0, "not started: out of time"))
                continue
            # the last one may use what the others left; a machine that only runs it dry may be slow
            alone = arguments.dry_run or section == chosen[-1]
            limit = left if alone else min(left, SECTIONS[section][2])
            print(f"== {section} (at most {limit:.0f} s)", flush=True)
            place = sheet(section, results, arguments.logs)
            deadline = time.time() + limit
            command = _command(section, arguments, results, deadline - 5, since)
            done.append(supervise(section, command, place, arguments.logs, deadline))
            _record(done[-1], results, device)
            report.write(results, device)
            publish(results, arguments.logs)
    finally:
        # also when this process is told to stop in the middle of a section
        publish(results, arguments.logs)
    return _close(done, results, device)


def _record(result: Result, results: Path, device: str) -> None:
    outcome = result.outcome
    values = {"section": result.section, "status": result.status, "seconds": result.seconds, "detail": result.detail}
    counts = {"ok": outcome.ok, "failed": outcome.failed, "skipped": outcome.skipped, "left": outcome.left}
    rows.append(results / f"{device}-sections.csv", rows.SECTION, {**values, **counts})


def _close(done: list[Result], results: Path, device: str) -> int:
    print("== summary")
    for result in done:
        outcome = result.outcome
        counts = f"{outcome.ok} ok, {outcome.failed} failed, {outcome.skipped} skipped, {outcome.left} left"
        print(f"{result.section:<10}{result.status:<9}{result.seconds:6.0f} s  {counts}  {result.detail}".rstrip())
        for name in outcome.first_left:
            print(f"{'':<10}left: {name}")
    print(f"results: {results}/{device}-*.csv, {device}-summary.md")
    if any(result.outcome.left for result in done):
        print("some rows are left for lack of time: repeat the command to go on")
    return int(any(result.outcome.failed or result.status == "failed" for result in done))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
