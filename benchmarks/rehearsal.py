"""Both calls of a plan on this machine, as near to a lent GPU machine as it can be without a GPU.

    python -m benchmarks.rehearsal [--plan train] [--python PYTHON] [--budget SECONDS] [--folder DIR] [SECTION ...]

The checkout is copied to a folder of its own, with what `make gpu-pack` made ready, and copied anew between the calls:
what a call leaves outside of build/ and the compiled libraries is lost then, and counts as a fault. The calls have no
network where that can be had, an empty home and no compiler's cache, and run dry: on the CPU, with tiny shapes.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .archive import NAME, PART, unpack
from .gpu_call import pack_of
from .plans import PLANS
from .rows import ROOT

# what such a machine hands back
MOST_FILES, MOST_BYTES = 8, 64 * 2**20
# kept from call to call: what git ignores
_KEPT = ("build", ".git")


@dataclass(frozen=True)
class Call:
    """How a call went.

    Attributes:
        code: of its exit.
        seconds: it took, on a machine that others may be using too.
        busy: seconds that its processes computed, all together.
        returned: bytes by name of what came back.
        names: of the files in the archive.
        output: what it printed.
    """

    code: int
    seconds: float
    busy: float
    returned: dict[str, int]
    names: list[str]
    output: str


@functools.cache
def _isolated() -> tuple[str, ...]:
    """The command that takes the network away; empty where nobody may."""
    command = ("unshare", "--net")
    if shutil.which("unshare") is None:
        return ()
    return command if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0 else ()


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Machine:
    """A folder in the place of a lent machine."""

    def __init__(self, folder: Path, python: str, path: str = os.environ["PATH"]) -> None:
        self.folder, self.python, self.path = folder, python, path
        self.root, self.out, self.home = folder / "checkout", folder / "out", folder / "home"
        self.home.mkdir(parents=True)

    def sync(self, carry: Sequence[Path]) -> list[str]:
        """Bring the checkout and what is carried; the names of files that a call left where they do not last."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        sources = {name for name in listed if name and (ROOT / name).is_file()}
        lost = []
        for path in self.root.rglob("*") if self.root.exists() else ():
            name = str(path.relative_to(self.root))
            ignored = name.split("/")[0] in _KEPT or "__pycache__" in name or name.endswith((".so", "_build_info.py"))
            if path.is_file() and name not in sources and not ignored and ".egg-info" not in name:
                lost.append(name)
                path.unlink()
        for name in sources:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != (ROOT / name).read_bytes():
                shutil.copy2(ROOT / name, target)
        for path in carry:
            target = self.root / "build/gpu-day" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        return lost

    def call(self, number: int, *options: str, limit: float = 600.0) -> Call:
        """Run a call's script, killed with all it started at `limit` seconds, and look at what comes back."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        variables = {"PATH": self.path, "HOME": str(self.home), "OUT": str(self.out), "GPU_PYTHON": self.python}
        variables |= {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE") if name in os.environ}
        log = self.folder / f"call-{number}.txt"
        started, before = time.time(), _busy()
        command = ["timeout", "--signal=KILL", str(limit), *_isolated(), "bash", f"benchmarks/gpu_call_{number}.sh"]
        with log.open("w") as out:
            done = subprocess.run(
                [*command, *options], cwd=self.root, env=variables, stdout=out, stderr=out, check=False
            )
        seconds, busy = time.time() - started, _busy() - before
        returned = {str(p.relative_to(self.out)): p.stat().st_size for p in self.out.rglob("*") if p.is_file()}
        return Call(done.returncode, seconds, busy, returned, self._names(), log.read_text())

    def _names(self) -> list[str]:
        parts = sorted(self.out.glob(f"{NAME}*"))
        if not parts:
            return []
        target = self.folder / "back"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        whole = self.folder / NAME
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        return unpack(whole, target)

    def back(self, pattern: str) -> list[Path]:
        """Files of the last call's archive."""
        return sorted((self.folder / "back").glob(pattern))


def faults(call: Call, budget: float) -> list[str]:
    """Which of a lent machine's limits, or of the rehearsal's own, a call was over."""
    found = []
    # other processes' use of this machine is not the call's fault
    if min(call.seconds, call.busy) > budget / 2:
        found.append(f"took {call.seconds:.0f} s, more than half of its {budget:.0f} s")
    if len(call.returned) > MOST_FILES or any("/" in name for name in call.returned):
        found.append(f"expected at most {MOST_FILES} files in one folder, got {sorted(call.returned)}")
    if max(call.returned.values(), default=0) > PART or sum(call.returned.values()) > MOST_BYTES:
        found.append(f"files too large: {call.returned}")
    if not call.names or "summary.md" not in call.returned:
        found.append("no archive or no summary came back")
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("rehearsal", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="sections of the plan (default: all)")
    parser.add_argument("--plan", choices=("short", "train"), default="short")
    parser.add_argument("--python", default=sys.executable, help="as near to the GPU machine's as can be had")
    parser.add_argument("--budget", type=float, help="seconds of each call (default: the plan's)")
    parser.add_argument("--folder", type=Path, help="where to play the machine (default: a temporary folder)")
    arguments = parser.parse_args(given)
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        machine = Machine((arguments.folder or Path(temporary)) / "machine", arguments.python)
        carry = [path for path in (pack_of(arguments.plan),) if path.is_file()]
        if not carry:
            print(f"rehearsal: {pack_of(arguments.plan).name} is not there: `make gpu-pack` first", file=sys.stderr)
            return 2
        travels = sum(path.stat().st_size for path in carry)
        print(f"{arguments.python}; {'no network' if _isolated() else 'with a network'}; {travels:,} bytes are carried")
        for number in PLANS[arguments.plan].calls():
            lost = machine.sync(carry)
            budget = arguments.budget or float(PLANS[arguments.plan].budget(number))
            options = [arguments.plan, "--dry-run", "--budget", str(budget), *arguments.sections]
            call = machine.call(number, *options, limit=budget + 60)
            print(call.output)
            problems = [*faults(call, budget), *(f"{name} would have been lost" for name in lost)]
            sizes = ", ".join(f"{name} {size:,} bytes" for name, size in sorted(call.returned.items()))
            print(
                f"rehearsal: call {number}: exit code {call.code} after {call.seconds:.0f} s of {budget:.0f} s, "
                f"{call.busy:.0f} s of them computing; "
                f"{len(call.returned)} files back ({sizes}) with {len(call.names)} in the archive"
            )
            for problem in problems:
                print(f"rehearsal: call {number}: {problem}")
            bad += len(problems) + (call.code != 0)
        lost = machine.sync(carry)
        bad += len(lost)
        print(f"rehearsal: {'passed' if not bad else 'failed'}" + "".join(f"; {name} would be lost" for name in lost))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
