"""The one engine of comparisons: contestants called one after another, round by round, their results held together.

Each lives in a process of its own, with its own thread pool and its best settings, and what else the machine does
meets all of them alike. A result that is off by more than rounding gets no ratio.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from liteseg.bench.record import Skip

__all__ = ["Contestant", "Outcome", "add_ratios", "difference", "rounds", "spread", "take_turns"]

# spinning workers of one pool must be asleep before the next one's turn
PAUSE = 0.02

Key = TypeVar("Key", bound=Hashable)


def _nothing() -> None:
    pass


def _no_facts() -> dict[str, Any]:
    return {}


@dataclass
class Contestant:
    """What a process has made ready.

    Attributes:
        call: the work that is timed.
        prepare: runs before each call, outside of the time.
        wait: returns when the device has nothing left to do; before and after the timed call.
        facts: goes back to the caller, values of plain types.
        result: arrays that the work gives, which are compared with the reference's.
        finish: more facts, known after the last call.
    """

    call: Callable[[], Any]
    prepare: Callable[[], Any] = _nothing
    wait: Callable[[], Any] = _nothing
    facts: dict[str, Any] = field(default_factory=dict)
    result: Sequence[Any] = ()
    finish: Callable[[], dict[str, Any]] = _no_facts


@dataclass
class Outcome:
    """Milliseconds of each timed call, or the reason why there are none; `difference` from the reference's result, None
    where there is nothing to compare with."""

    times: list[float]
    facts: dict[str, Any]
    reason: str = ""
    difference: float | None = None


def difference(result: Any, expected: Any) -> float:
    """Of two arrays: the share of labels that differ, or the relative error in the Frobenius norm."""
    import numpy as np

    if result.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "iub":
        return float((result != expected).mean()) if result.size else 0.0
    off = float(np.linalg.norm((result - expected).ravel().astype(np.float64)))
    size = max(float(np.linalg.norm(expected.ravel().astype(np.float64))), 1e-30)
    return off / size if off / size < float("inf") else float("inf")


def _compared(result: Sequence[Any], folder: Path, first: bool) -> float | None:
    """Largest difference from what the reference left in `folder`; None where it left nothing."""
    import numpy as np

    paths = [folder / f"expected-{index}.npy" for index in range(len(result))]
    if first:
        for path, array in zip(paths, result, strict=True):
            np.save(path, array)
    if not paths or not all(path.exists() for path in paths):
        return None
    return max(difference(array, np.load(path, mmap_mode="r")) for path, array in zip(paths, result, strict=True))


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return first if isinstance(error, Skip) else f"{type(error).__name__}: {first}"


def _serve(
    pipe: Connection, make: Callable[[], Contestant], folder: Path, first: bool, warm_up: int, gradients: bool
) -> None:
    """A contestant's process: says whether it is ready, then runs a call whenever asked."""
    import torch

    with contextlib.nullcontext() if gradients else torch.inference_mode():
        try:
            one = make()
            off = _compared(one.result, folder, first)
            one.result = ()
            for _ in range(warm_up):
                one.prepare()
                one.call()
            one.wait()
        except Exception as error:
            pipe.send(Outcome([], {}, _reason(error)))
            return
        pipe.send(Outcome([], one.facts, difference=off))
        while _received(pipe):
            one.prepare()
            one.wait()
            start = time.perf_counter()
            one.call()
            one.wait()
            pipe.send(1e3 * (time.perf_counter() - start))
        with contextlib.suppress(OSError):
            pipe.send(one.finish())


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _asked(pipe: Connection, more: bool) -> Any:
    """Milliseconds of one more call, or the last facts; None where the process is gone."""
    try:
        pipe.send(more)
    except OSError:
        return None
    return _received(pipe)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def rounds(calls: Mapping[Key, Callable[[], float | None]], *, burn_in: int, runs: int) -> dict[Key, list[float]]:
    """What each call says of itself, in `runs` rounds of all of them after `burn_in` that are not counted. Who says
    None is left out from then on."""
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    for index in range(burn_in + runs):
        for name, call in calls.items():
            if name in taken:
                found = call()
                if found is None:
                    del taken[name]
                elif index >= burn_in:
                    taken[name].append(found)
    return taken


def take_turns(
    makers: Mapping[str, Callable[[], Contestant]],
    *,
    runs: int,
    threads: int,
    burn_in: int = 0,
    warm_up: int = 3,
    reference: str | None = None,
    gradients: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Outcome]:
    """Times of each contestant, `runs` calls after `burn_in` that are not counted.

    Args:
        makers: picklable functions that make a contestant in its process and raise where it cannot run.
        threads: of every process's pools.
        warm_up: calls of each while it is made ready.
        reference: whose result the others' are compared with; it has to come first.
        gradients: whether the calls record any; else they run in inference mode.
        progress: is told which contestant is being made ready.
    """
    if reference is not None and reference in makers and reference != next(iter(makers)):
        raise ValueError(f"take_turns: reference: expected the first contestant, got {reference!r}")
    context = multiprocessing.get_context("spawn")
    # pools read these when their library is loaded, so they are set before the processes start
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    running: dict[str, tuple[Connection, Any]] = {}
    outcomes: dict[str, Outcome] = {}

    def turn(name: str) -> float | None:
        taken = _asked(running[name][0], True)
        time.sleep(PAUSE)
        return taken

    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, make in makers.items():
                progress(name)
                ours, theirs = context.Pipe()
                arguments = (theirs, make, Path(folder), name == reference, warm_up, gradients)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                outcomes[name] = _received(ours) or Outcome([], {}, "its process died")
                if not outcomes[name].reason:
                    running[name] = ours, process
            taken = rounds({name: functools.partial(turn, name) for name in running}, burn_in=burn_in, runs=runs)
            for name in running:
                if name not in taken:
                    outcomes[name] = Outcome([], {}, "its process died while it was timed")
                    continue
                outcomes[name].times = taken[name]
                outcomes[name].facts |= _asked(running[name][0], False) or {}
        finally:
            _restore("OMP_NUM_THREADS", before)
            for pipe, process in running.values():
                # closing it ends a process that still waits to be asked
                pipe.close()
                process.join(timeout=10)
                if process.is_alive():
                    process.terminate()
    return outcomes


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantiles of milliseconds, by the columns of results files."""
    low, _, _, high = statistics.quantiles(times, n=5)
    return {"p50 ms": statistics.median(times), "p20 ms": low, "p80 ms": high}


def add_ratios(rows: Iterable[dict[str, Any]], column: str, limit: float, *, error: str = "error") -> None:
    """Put into `column` of rows with a "p50 ms" how many times the row of "liteseg" it is.

    Where the result of either, by the column `error`, is off by more than `limit` or was compared with nothing, there
    is no ratio, and the column "detail" says so.
    """
    timed = [row for row in rows if row.get("p50 ms") is not None]
    ours = next((row for row in timed if row["provider"] == "liteseg"), None)
    if ours is None:
        return
    for row in timed:
        off = [one[error] if one.get(error) is not None else float("nan") for one in (row, ours)]
        if all(value <= limit for value in off):
            row[column] = row["p50 ms"] / ours["p50 ms"]
        else:
            row["detail"] = f"no ratio: error {off[0]:.2g}, liteseg's {off[1]:.2g}, at most {limit:.2g}"
