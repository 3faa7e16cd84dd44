"""One call on a lent GPU machine: unpack what travelled, run that call's sections of a plan, hand everything back.

    bash benchmarks/gpu_call_1.sh [train] [options of benchmarks.gpu_day]

Nothing outside of build/ and the compiled libraries is written, so that the next call finds it again when the sources
are brought anew. Only the standard library is used before the libraries are in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import archive
from .plans import PLANS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/gpu-day"
CACHE = FOLDER / "triton-cache"
COMMIT = FOLDER / "commit.txt"
PACKAGES = FOLDER / "packages"
TRAINING = FOLDER / "training"
# seconds after its budget that a call may still take to end by itself
_GRACE = 15


def pack_of(plan: str) -> Path:
    return FOLDER / f"pack-{plan}.tar.xz"


def unpack(plan: str) -> str:
    """Put the plan's archive in place, once; what was done."""
    pack, record = pack_of(plan), FOLDER / f"unpacked-{plan}.txt"
    if not pack.is_file():
        return f"there is no {pack.relative_to(ROOT)}: nothing was made ready ahead"
    # it is sent anew with every call
    state = hashlib.sha256(pack.read_bytes()).hexdigest()
    if record.is_file() and record.read_text() == state:
        return f"{pack.name} is unpacked"
    started = time.time()
    names = archive.unpack(pack, ROOT)
    relocate(CACHE)
    record.write_text(state)
    return f"{pack.name}: {pack.stat().st_size:,} bytes, {len(names)} files, {time.time() - started:.1f} s"


def relocate(cache: Path) -> None:
    """Triton's cache names its files by their absolute paths: write those of this machine, of the files that came."""
    for group in cache.glob("*/__grp__*.json"):
        places = (group.parent / name for name in json.loads(group.read_text())["child_paths"])
        here = {place.name: str(place) for place in places if place.is_file()}
        group.write_text(json.dumps({"child_paths": here}))


def environment() -> dict[str, str]:
    """Variables of everything that runs in the call."""
    variables = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(CACHE),
        "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "inductor-cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(PACKAGES), os.environ.get("PYTHONPATH", "")])),
        # nothing may look for an index
        "PIP_NO_INDEX": "1",
    }
    if COMMIT.is_file():
        variables.setdefault("LITESEG_COMMIT", COMMIT.read_text().strip())
    return variables


def main(given: Sequence[str]) -> int:
    """The call's number, then the plan where it is not `short`, then options of benchmarks.gpu_day."""
    call, *options = given
    plan = options.pop(0) if options and options[0] in PLANS else "short"
    budget = float(PLANS[plan].budget(int(call)))
    if "--budget" in options:
        budget = float(options[options.index("--budget") + 1])
    else:
        options += ["--budget", str(budget)]
    started = time.time()
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        print(f"gpu-call {call}: {unpack(plan)}", flush=True)
    except Exception as problem:
        # what cannot be unpacked is built or compiled, as far as there is time
        print(f"gpu-call {call}: {type(problem).__name__}: {problem}", flush=True)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_day", "--plan", plan, "--call", call]
    command += ["--results", str(FOLDER / "results"), "--logs", str(FOLDER / "logs"), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment())
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait(timeout=budget + _GRACE)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            code = process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    returned = sorted(path for path in Path(os.environ.get("OUT", "")).glob("*") if "OUT" in os.environ)
    sizes = ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in returned)
    print(f"gpu-call {call}: exit code {code} after {time.time() - started:.0f} s; back come {sizes or 'no files'}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
