"""Ctrl-C in a training: the step is finished and saved before the run ends."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytorch_lightning as pl

from liteseg.distributed import rank


class Interruption:
    """While it is entered, the first SIGINT is a wish that is met between two steps, the second ends the run at once.

    Attributes:
        training: whether there are steps to wait for; before them the first SIGINT ends the run.
        saved: the checkpoint that was written on the way out, and its step; None where there is none.
    """

    def __init__(self) -> None:
        self.training = self._asked = False
        self._before: Any = None
        self.saved: tuple[Path, int] | None = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self.training:
            raise KeyboardInterrupt
        self._asked = True
        if rank() == 0:
            sys.stderr.write("\nliteseg: stopping after this step (Ctrl-C again: at once, without saving)\n")

    def __enter__(self) -> Interruption:
        # no other thread may say what signals do
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # lightning leaves SIGINT ignored
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def asked(self, trainer: pl.Trainer) -> bool:
        """Whether any of the processes was asked to stop; all of them have to call this together."""
        return trainer.strategy.reduce_boolean_decision(self._asked, all=False)

    def stop(self, trainer: pl.Trainer, path: Path | None) -> None:
        """Ends the run, whose state is in `path`; None for a run that keeps none."""
        self.saved = None if path is None else (path, trainer.global_step)
        raise KeyboardInterrupt


def left_to_the_trainer(worker: int) -> None:
    """For loader processes: the terminal sends Ctrl-C to them too, and without them the step could not be finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
