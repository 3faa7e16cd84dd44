"""The plan `train` of a GPU day: all its minutes for LiteSeg-MobileNetV2 on CamVid, over two calls.

The schedule has to know its length before it begins, so a few epochs are timed first; the run is then as long as the
calls' budgets allow. A call that ends in the middle leaves a checkpoint, from which the next one goes on, on the same
machine or (with what came back) on any other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .day import Day
from .gpu_call import TRAINING
from .plans import PLANS
from .rows import ROOT, Row, Values

PRESET = "camvid_mobilenetv2_modern"
# pictures are trained on and evaluated at twice their size; crops and scales of the preset are for 1.5 times
OPTIONS = (
    *("--model.input_scale", "2.0", "--data.augment.crop", "[704, 960]", "--data.augment.scale", "[1.0, 3.0]"),
    *("--data.batch_size", "8", "--data.num_workers", "14", "--trainer.check_val_every_n_epoch", "20"),
    *("--export_dtype", "float16"),
)
DRY = (
    *("--data.augment.crop", "[64, 96]", "--data.batch_size", "2", "--data.num_workers", "0"),
    *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"),
    *("--evaluate", "null"),
)
# epochs that are timed, of which the first one compiles and warms up
_TIMED = 4
# of a call: start of the process and its kernels; end with the last validation and the weights
_START, _END = 25.0, 25.0


def train(day: Day) -> Iterator[Row]:
    """One row a call, always run again: it goes on with the run."""
    key = {"check": "train", "case": PRESET, "backend": "auto", "dtype": "bf16"}
    yield Row(key, lambda: _train(day), cost=1, limit=1e6, always=True)


def _command(day: Day, out: Path, epochs: int) -> list[str]:
    # extra options of the command come last, so that they win
    extra = os.environ.get("LITESEG_TRAIN_OPTIONS", "").split()
    command = [sys.executable, "-m", "liteseg", "train", "--config", PRESET, "--data.root", str(TRAINING / "camvid")]
    command += ["--out", str(out), "--trainer.max_epochs", str(epochs), "--trainer.enable_progress_bar", "false"]
    backbone = TRAINING / "backbone.safetensors"
    command += ["--model.backbone_weights", str(backbone)] if backbone.is_file() else []
    return [*command, *OPTIONS, *(DRY if day.dry else ()), *extra]


class _TrainingProcess:
    """A training process: when its epochs ended, by the checkpoint that each of them leaves."""

    def __init__(self, day: Day, out: Path, epochs: int, log: Path) -> None:
        self.checkpoint = out / "checkpoints/last.ckpt"
        self.seen = self._stamp()
        self.ends: list[float] = []
        self.log = log.open("a")
        command = _command(day, out, epochs)
        print(" ".join(command[2:]), file=self.log, flush=True)
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True)

    def _stamp(self) -> int:
        return self.checkpoint.stat().st_mtime_ns if self.checkpoint.is_file() else 0

    def wait(self, deadline: float, epochs: int | None = None) -> int | None:
        """The exit code; None where the process was stopped, at the deadline or after so many epochs."""
        try:
            while self.process.poll() is None:
                time.sleep(0.05)
                stamp = self._stamp()
                if stamp != self.seen:
                    self.seen = stamp
                    self.ends.append(stamp / 1e9)
                if time.time() > deadline or (epochs is not None and len(self.ends) >= epochs):
                    return None
            return self.process.returncode
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.log.close()


def _schedule(day: Day, log: Path) -> dict[str, float]:
    """Epochs of the whole run, and what an epoch took; timed once, then read."""
    record = TRAINING / "schedule.json"
    if record.is_file():
        return json.loads(record.read_text())
    probe = TRAINING / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    started = time.time()
    run = _TrainingProcess(day, probe, 10**4, log)
    code = run.wait(min(day.deadline, started + 180), _TIMED)
    if len(run.ends) < 3:
        raise RuntimeError(f"no three epochs within {time.time() - started:.0f} s, exit code {code}: {_last(log)}")
    seconds = (run.ends[-1] - run.ends[0]) / (len(run.ends) - 1)
    plan = PLANS["train"]
    budgets = [float(plan.budget(call)) for call in plan.calls()]
    # this call's own budget may be another one
    budgets[0] = min(budgets[0], day.deadline - started)
    total = sum(budgets) - len(budgets) * (_START + _END) - (time.time() - started)
    found = {"epochs": max(1, int(total / seconds)), "seconds": seconds}
    if day.dry:
        found["epochs"] = 6
    shutil.rmtree(probe, ignore_errors=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(found))
    return found


def _last(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return " ".join(lines[-1:])


def _train(day: Day) -> Values:
    if not (TRAINING / "camvid/train.txt").is_file():
        raise RuntimeError(f"no data in {TRAINING.relative_to(ROOT)}: run gpu_pack --plan train before the call")
    log = day.logs / "training.txt"
    out = TRAINING / "run"
    schedule = _schedule(day, log)
    epochs = int(schedule["epochs"])
    started = time.time()
    run = _TrainingProcess(day, out, epochs, log)
    code = run.wait(day.deadline - 8)
    returned = day.results / "training"
    shutil.rmtree(returned, ignore_errors=True)
    returned.mkdir(parents=True)
    for path in (out / "checkpoints/last.ckpt", out / "weights.safetensors", out / "val.json", out / "config.yaml"):
        if path.is_file():
            shutil.copy2(path, returned / path.name)
    for path in out.glob("events.*"):
        shutil.copy2(path, returned / path.name)
    text = f"{len(run.ends)} epochs of {epochs} in {time.time() - started:.0f} s ({schedule['seconds']:.2f} s an epoch)"
    if code == 0:
        return {"detail": f"{text}, finished: {_last(log)}"}
    if code is None:
        if not (returned / "last.ckpt").is_file():
            return {"status": "timeout", "detail": f"{text}: stopped before its first checkpoint: {_last(log)}"}
        return {"detail": f"{text}, to be continued"}
    return {"status": "failed", "detail": f"{text}, exit code {code}: {_last(log)}"}
