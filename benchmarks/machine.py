"""The first section of a GPU day: build the kernels offline where they are not there, and see that everything loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from liteseg.bench.record import Skip

from .day import Day
from .rows import ROOT, Row, Values, sources

LIBRARIES = ("_C", "_C_cuda")
# digest of the sources that the libraries in the checkout were built from
BUILT = ROOT / "build/gpu-day/built-sources.txt"
_PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-build-isolation", "--no-deps")


def ready(day: Day) -> Iterator[Row]:
    """Both libraries, as a user builds them, unless they are there for these sources; nothing is fetched. Then what
    `python -m liteseg_kernels.info` says; both libraries and all backends must be usable."""
    key = {"check": "build", "case": "pip install -e ."}
    yield Row(key, lambda: _build(day), cost=20 if not day.dry else 1, limit=400, always=True)
    if day.dry:
        # here, or the first test of the parity section would have to wait for it
        yield Row({"check": "build", "case": "emulator"}, _emulator, cost=1, limit=600)
    yield Row({"check": "info", "case": "libraries and backends"}, lambda: _info(day), rank=1, cost=5, always=True)


def _build(day: Day) -> Values:
    present = all((ROOT / f"liteseg_kernels/{name}.abi3.so").is_file() for name in LIBRARIES)
    if not day.dry and present and BUILT.is_file() and BUILT.read_text() == sources():
        return {"detail": "up to date"}
    variables = {**os.environ, "LITESEG_BUILD": "cuda"}
    # a dry run stops when pip has the project's metadata: others may be using the libraries that are there
    pip = [sys.executable, *_PIP, *(["--dry-run"] if day.dry else []), "-e", "."]
    problems = []
    # without an installation everything still works from the checkout's folder
    for command in (pip, [sys.executable, "setup.py", "build_ext", "--inplace"]):
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        log = day.logs / f"build-{len(problems)}.txt"
        log.write_text(done.stdout + done.stderr)
        if done.returncode == 0:
            if not day.dry:
                BUILT.parent.mkdir(parents=True, exist_ok=True)
                BUILT.write_text(sources())
            return {"status": "failed" if problems else "ok", "detail": "; ".join(problems)}
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        problems.append(f"{' '.join(command[1:4])} failed with exit code {done.returncode} ({log.name}): {last}")
        if day.dry:
            break
    raise RuntimeError("; ".join(problems))


def _emulator() -> Values:
    from tests.emulator.build import load

    reason = load()
    if reason is not None:
        raise Skip(reason)
    return {}


def _info(day: Day) -> Values:
    done = subprocess.run(
        [sys.executable, "-m", "liteseg_kernels.info"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    (day.logs / "info.txt").write_text(done.stdout + done.stderr)
    print(done.stdout, flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"liteseg_kernels.info failed with exit code {done.returncode}, see info.txt")
    from liteseg_kernels.info import collect

    found = collect()
    missing = {**found["libraries"], **found["backends"]}
    problems = [f"{name}: {reason}" for name, reason in missing.items() if reason is not None]
    if problems and not day.dry:
        raise RuntimeError("; ".join(problems))
    return {"detail": "; ".join(problems) or "all usable"}
