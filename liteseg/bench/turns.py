"""Timing in turns: every contestant in a process of its own, called one after another, round by round.

Each process has its own thread pool and its best settings, and what else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from liteseg.bench.record import Skip

__all__ = ["Contestant", "Outcome", "take_turns"]

# spinning workers of one pool must be asleep before the next one's turn
PAUSE = 0.02


def _nothing() -> None:
    pass


@dataclass
class Contestant:
    """What a process has made ready.

    Attributes:
        call: the work that is timed.
        prepare: runs before each call, outside of the time.
        wait: returns when the device has nothing left to do; before and after the timed call.
        facts: goes back to the caller, values of plain types.
    """

    call: Callable[[], Any]
    prepare: Callable[[], Any] = _nothing
    wait: Callable[[], Any] = _nothing
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Milliseconds of each timed call, or the reason why there are none."""

    times: list[float]
    facts: dict[str, Any]
    reason: str = ""


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return first if isinstance(error, Skip) else f"{type(error).__name__}: {first}"


def _serve(pipe: Connection, make: Callable[[], Contestant]) -> None:
    """A contestant's process: says whether it is ready, then runs a call whenever asked."""
    import torch

    with torch.inference_mode():
        try:
            one = make()
            for _ in range(3):
                one.prepare()
                one.call()
            one.wait()
        except Exception as error:
            pipe.send(({}, _reason(error)))
            return
        pipe.send((one.facts, ""))
        while pipe.recv():
            one.prepare()
            one.wait()
            start = time.perf_counter()
            one.call()
            one.wait()
            pipe.send(1e3 * (time.perf_counter() - start))


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return {}, "its process died"


def _asked(pipe: Connection) -> Any:
    """Milliseconds of one more call; anything but a float where the process is gone."""
    try:
        pipe.send(True)
    except OSError:
        return None
    return _received(pipe)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def take_turns(
    makers: Mapping[str, Callable[[], Contestant]],
    *,
    burn_in: int,
    runs: int,
    threads: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Outcome]:
    """Times of each contestant, `runs` calls after `burn_in` that are not counted.

    Args:
        makers: picklable functions that make a contestant in its process and raise where it cannot run; the first one
            is ready before the others start, so that they may compare with what it leaves on disk.
        threads: of every process's pools.
        progress: is told which contestant is being made ready.
    """
    context = multiprocessing.get_context("spawn")
    # pools read these when their library is loaded, so they are set before the processes start
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    running: dict[str, tuple[Connection, Any]] = {}
    outcomes: dict[str, Outcome] = {}
    try:
        for name, make in makers.items():
            progress(name)
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            process.start()
            theirs.close()
            running[name] = ours, process
            facts, reason = _received(ours)
            outcomes[name] = Outcome([], facts, reason)
            if reason:
                del running[name]
        for index in range(burn_in + runs):
            for name, (pipe, _) in list(running.items()):
                taken = _asked(pipe)
                if not isinstance(taken, float):
                    outcomes[name] = Outcome([], {}, "its process died while it was timed")
                    del running[name]
                elif index >= burn_in:
                    outcomes[name].times.append(taken)
                time.sleep(PAUSE)
    finally:
        _restore("OMP_NUM_THREADS", before)
        for pipe, process in running.values():
            with contextlib.suppress(OSError):
                pipe.send(False)
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    return outcomes
