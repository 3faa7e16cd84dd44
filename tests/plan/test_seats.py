"""Threads of a team that wake up on one processor move apart, and keep the processors that they were allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liteseg_kernels import _loader

ROOT = Path(__file__).resolve().parents[2]

_CALLS = """
import os, torch, liteseg_kernels as lk
from tests.plan.test_plan import network, picture

def allowed():
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}

torch.set_num_threads(2)
processors = sorted(os.sched_getaffinity(0))[:2]
with torch.inference_mode():
    fused, x = lk.fuse(network()), picture(1, 3, 64, 96)
    expected = fused.low_resolution_logits(x)
    before = allowed()
    # all of them on one processor, where nobody can move; then one alone may leave it; then all as before
    for main, others in ((processors[:1], processors[:1]), (processors[:1], processors), (processors, processors)):
        for task in before:
            os.sched_setaffinity(task, main if task == os.getpid() else others)
        told = allowed()
        for _ in range(30):
            assert torch.equal(fused.low_resolution_logits(x), expected)
        after = allowed()
        assert {task: after[task] for task in told} == told, (told, after)
print("ok")
"""


@pytest.mark.skipif(_loader.missing("cpu") is not None, reason="needs the compiled CPU kernels")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_threads_keep_the_processors_they_are_allowed() -> None:
    done = subprocess.run([sys.executable, "-c", _CALLS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr[-2000:]
