"""Everything that is to be known from a GPU: `python -m benchmarks.gpu_day --plan short|train|long`.

Sections run one after another, each in a process of its own with a time limit, so that one that fails, crashes or
hangs leaves the others alone. Results are appended to <results>/<device>-*.csv row by row; rows that are there for the
same sources are not run again, so a call that ran out of time is simply repeated. `--dry-run` takes the whole way on
the CPU with tiny shapes: Triton in its interpreter, CUDA kernels in the emulator.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from liteseg.bench.record import now, write_text

from . import archive, report, rows
from .plans import PLANS, Section
from .rows import ROOT, Outcome, Row
from .supervisor import DEVICE_FAULT, Result, supervise

DRY_BUDGET = 1800
# what takes up most of an archive, and is left behind if it does not fit
_LARGE = (".ckpt",)


# --- in the process of a section


def run_section(arguments: argparse.Namespace) -> None:
    """The child's side: run the rows, leave the outcome in a file."""
    from .day import Day

    place = arguments.results, arguments.logs, arguments.deadline
    day = Day.make(arguments.plan, arguments.dry_run, *place)
    section = next(x for x in PLANS[arguments.plan].sections if x.name == arguments.child)
    module, _, function = section.place.partition(".")
    found: Iterator[Row] = getattr(importlib.import_module(f".{module}", __package__), function)(day)
    chosen = [row for row in found if arguments.only in row.name]
    place_of = rows.sheet(section.sheet, section.name, day.results, day.logs)

    def progress(outcome: Outcome) -> None:
        write_text(day.logs / f"{section.name}-outcome.json", json.dumps(dataclasses.asdict(outcome)))

    left = rows.run_rows(chosen, place_of, arguments.deadline, arguments.since, progress)
    (day.logs / f"{section.name}-left.txt").write_text("".join(f"{name}\n" for name in left))


def print_environment() -> None:
    import torch

    print(json.dumps({"cuda": torch.cuda.is_available(), "environment": rows.environment()}))


def publish(results: Path, logs: Path, device: str) -> None:
    """Hand results and logs back in the folder that OUT names, where one is set."""
    out = os.environ.get("OUT")
    if not out:
        return
    folders = {name: path for name, path in (("results", results), ("logs", logs)) if path.is_dir()}
    try:
        archive.publish(Path(out), folders, results / f"{device}-summary.md", _LARGE)
    except OSError as problem:
        print(f"gpu-day: the results could not be handed back: {problem}", file=sys.stderr, flush=True)


class _NoDevice(Exception):
    """Nothing can run here, and why; the exit code of the command."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


def _environment(dry: bool, logs: Path) -> dict[str, str]:
    """Environment of the device, in this process and for the sections."""
    # triton decides at its import whether kernels run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1" if dry else "0"
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--child", "environment"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        raise _NoDevice("torch does not start within 100 s", 1) from None
    if done.returncode != 0:
        (logs / "environment.txt").write_text(done.stdout + done.stderr)
        raise _NoDevice(f"torch does not start: {''.join(done.stderr.strip().splitlines()[-1:])}", 1)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if not dry and not found["cuda"]:
        raise _NoDevice("torch sees no CUDA device (--dry-run needs none, and shows no times)", 2)
    os.environ[rows.ENVIRONMENT_VARIABLE] = json.dumps(found["environment"])
    return found["environment"]


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu-day", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="sections of the plan (default: all)")
    parser.add_argument("--plan", choices=PLANS, default="long", help="which sections and what size (default: long)")
    parser.add_argument("--call", type=int, default=0, help="only the sections of this call of the plan")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny shapes; checks this script")
    parser.add_argument("--budget", type=float, help="seconds this call may take (default: the plan's)")
    parser.add_argument("--again", action="store_true", help="run rows again that are there already")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument("--results", type=Path, help="folder of the CSV files (default benchmarks/results)")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu-day/logs", help="folder of the logs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--since", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    plan = PLANS[arguments.plan]
    names = [section.name for section in plan.sections]
    for section in arguments.sections:
        if section not in names:
            parser.error(f"SECTION: expected one of {', '.join(names)}, got {section!r}")
    if arguments.call and arguments.call not in plan.calls():
        parser.error(f"--call: expected one of {', '.join(map(str, plan.calls())) or 'none'}, got {arguments.call}")
    if arguments.budget is None:
        arguments.budget = DRY_BUDGET if arguments.dry_run else plan.budget(arguments.call)
    if arguments.budget <= 0:
        parser.error(f"--budget: expected a number above 0, got {arguments.budget:g}")
    return arguments


def _command(section: str, arguments: argparse.Namespace, results: Path, deadline: float, since: str) -> list[str]:
    command = [sys.executable, "-u", "-m", "benchmarks.gpu_day", "--plan", arguments.plan, "--child", section]
    command += ["--results", str(results), "--logs", str(arguments.logs), "--deadline", str(deadline)]
    command += ["--since", since, "--only", arguments.only]
    return [*command, *(["--dry-run"] if arguments.dry_run else [])]


def _chosen(arguments: argparse.Namespace) -> list[Section]:
    """Sections of this call, without those that were not asked for."""
    return [
        section
        for section in PLANS[arguments.plan].sections
        if (not arguments.sections or section.name in arguments.sections)
        and (not arguments.call or section.call in (0, arguments.call))
    ]


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
            return DEVICE_FAULT
        return 0
    end = time.time() + arguments.budget
    since = now() if arguments.again else ""
    arguments.logs = arguments.logs.resolve()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    if arguments.results is None and arguments.dry_run:
        arguments.results = arguments.logs / "dry-run"
        shutil.rmtree(arguments.results, ignore_errors=True)
    results = (arguments.results or ROOT / "benchmarks/results").resolve()
    device = "none"
    done: list[Result] = []
    try:
        environment = _environment(arguments.dry_run, arguments.logs)
        device = rows.slug(environment["device"])
        print("gpu-day:", ", ".join(f"{name} {value}" for name, value in environment.items()), flush=True)
        _run(arguments, results, device, end, since, done)
    except _NoDevice as problem:
        print(f"gpu-day: {problem}", file=sys.stderr)
        (arguments.logs / "no-device.txt").write_text(f"{problem}\n")
        return problem.code
    finally:
        # also when this process is told to stop in the middle of a section
        publish(results, arguments.logs, device)
    return _close(done, results, device)


def _run(arguments: argparse.Namespace, results: Path, device: str, end: float, since: str, done: list[Result]) -> None:
    """Run the sections of this call one after another; each one's part of the summary is added to `done`."""
    chosen = _chosen(arguments)
    for section in chosen:
        left = end - time.time()
        if left < 10:
            done.append(Result(section.name, "partial", Outcome(left=1), 0.0, "not started: out of time"))
        else:
            # the last one may use what the others left; a machine that only runs it dry may be slow
            alone = arguments.dry_run or section == chosen[-1]
            limit = left if alone else min(left, section.seconds)
            print(f"== {section.name} (at most {limit:.0f} s, {left:.0f} s left)", flush=True)
            place = rows.sheet(section.sheet, section.name, results, arguments.logs)
            deadline = time.time() + limit
            command = _command(section.name, arguments, results, deadline - 5, since)
            done.append(supervise(section.name, command, place, arguments.logs, deadline))
        _record(done[-1], results, device)
        try:
            report.write(results, device)
        except Exception as problem:
            # the numbers matter more than the page
            print(f"gpu-day: no summary page: {type(problem).__name__}: {problem}", flush=True)
        publish(results, arguments.logs, device)


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
    print(f"{sum(result.seconds for result in done):.0f} s in sections; results: {results}/{device}-*.csv, -summary.md")
    if any(result.outcome.left for result in done):
        print("some rows are left for lack of time: repeat the command to go on")
    return int(any(result.outcome.failed or result.status == "failed" for result in done))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
