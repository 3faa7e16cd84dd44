"""`make sanitize`: the hostile suite of the CPU kernels on every instruction set of this machine, and the plans' tests.

Arguments go to pytest. A report of a sanitizer ends the run and is the last thing printed.
"""

from __future__ import annotations

import subprocess
import sys

from tests.instruction_sets.order import ORDER

from . import build

ISA = "import torch, liteseg_kernels; print(torch.ops.liteseg_cpu.isa())"
# the sanitizer keeps freed memory for a while, so resident memory says nothing here
PLANS = ["tests/plan", "--deselect", "tests/plan/test_plan.py::test_alternating_sizes_do_not_leak"]
# bfloat16's own code is in the plans alone, which choose it themselves; their tests run every instruction set
PARTS = [*((isa, ["tests/kernels", "-k", "cpu and not interpreter"]) for isa in ORDER[:3]), ("", PLANS)]


def main(arguments: list[str]) -> int:
    if reason := build.missing():
        sys.exit(f"error: {reason}")
    libraries = build.build()
    environment = build.environment(libraries)
    best = ORDER.index(
        subprocess.check_output([sys.executable, "-c", ISA], cwd=build.ROOT, env=environment, text=True)[:-1]
    )
    status = 0
    for isa, tests in PARTS:
        if isa and ORDER.index(isa) > best:
            print(f"== {isa}: not on this processor", flush=True)
            continue
        print(f"== {' '.join(tests)}{f' on {isa}' if isa else ''}", flush=True)
        # pytest would keep what it captured when a report ends the process
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=no", *tests, *arguments]
        done = subprocess.run(command, cwd=build.ROOT, env=environment | {"LITESEG_CPU_ISA": isa})
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
