"""Trainings that are killed: run as a script, so that torch is imported once and every run is a fork of it.

usage: mortal.py MODE SEED COUNT ARGUMENT...  (arguments of `liteseg train`)

MODE "moments": kills the run COUNT times, starting it again each time, then lets it end. Times are drawn from SEED: in
turn after the start and after the next checkpoint, so that on a slow machine too it gets on.
MODE "write" kills it while its COUNT-th checkpoint is half written, "rename" just before that file gets its name; then
lets it end. MODE "full" lets no file grow beyond COUNT bytes, as a full disk would; nothing is killed.
Prints one line a run: how it ended, and the step of the checkpoint it left.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from liteseg.train import checkpoint, cli


def _run(arguments: list[str]) -> int:
    """Starts the training in a child process; its process id."""
    child = os.fork()
    if child == 0:
        # os._exit skips what pytest or torch registered for the end of the parent
        os._exit(cli.main(arguments))
    return child


def _written(last: Path) -> int:
    return last.stat().st_mtime_ns if last.is_file() else 0


def _report(child: int, last: Path) -> int:
    _, status = os.waitpid(child, 0)
    step = checkpoint.read_checkpoint(last)["global_step"] if last.is_file() else 0
    code = os.waitstatus_to_exitcode(status)
    print(f"ended with {code} at step {step}", flush=True)
    return code


def _die_while_writing(count: int, mode: str) -> None:
    """From now on this process dies at its count-th checkpoint."""
    seen = 0
    write, replace = checkpoint._Watched.write, os.replace

    def dying_write(self: checkpoint._Watched, data: object) -> int:
        done = write(self, data)
        if mode == "write" and seen == count - 1 and self.tell() > 1_000_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def dying_replace(source: object, target: object) -> None:
        nonlocal seen
        if str(target).endswith(".ckpt"):
            seen += 1
            if mode == "rename" and seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    checkpoint._Watched.write, os.replace = dying_write, dying_replace


def main() -> int:
    mode, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    arguments = sys.argv[4:]
    last = Path(arguments[arguments.index("--out") + 1]) / "checkpoints" / "last.ckpt"
    torch.set_num_threads(1)
    if mode == "moments":
        draw = random.Random(seed)
        for number in range(count):
            before = _written(last)
            child = _run(arguments)
            if number % 2:
                while _written(last) == before and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    time.sleep(0.002)
                time.sleep(draw.uniform(0.0, 0.05))
            else:
                time.sleep(draw.uniform(0.0, 0.8))
            os.kill(child, signal.SIGKILL)
            _report(child, last)
    elif mode == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.RLIM_INFINITY))
        return _report(_run(arguments), last)
    else:
        child = os.fork()
        if child == 0:
            _die_while_writing(count, mode)
            os._exit(cli.main(arguments))
        _report(child, last)
    return _report(_run(arguments), last)


if __name__ == "__main__":
    sys.exit(main())
