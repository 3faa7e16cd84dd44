"""The plan `train`, with another program in the place of the training: its schedule, its end, what comes back."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import train
from benchmarks.day import Day

# an epoch a tenth of a second; goes on where its checkpoint ends
PROGRAM = """
import os, sys, time
from pathlib import Path
out, epochs = Path(sys.argv[1]), int(sys.argv[2])
file = out / "checkpoints/last.ckpt"
file.parent.mkdir(parents=True, exist_ok=True)
done = int(file.read_text()) if file.exists() else 0
for epoch in range(done, epochs):
    time.sleep(0.1)
    partial = file.with_suffix(".partial")
    partial.write_text(str(epoch + 1))
    os.replace(partial, file)
(out / "weights.safetensors").write_text("weights")
print("wrote the weights")
"""


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Day:
    place = tmp_path / "training"
    (place / "camvid").mkdir(parents=True)
    (place / "camvid/train.txt").write_text("a\n")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(train, "TRAINING", place)
    monkeypatch.setattr(
        train, "_command", lambda day, out, epochs: [sys.executable, str(program), str(out), str(epochs)]
    )
    return Day.make("train", False, tmp_path / "results", tmp_path / "logs", time.time() + 600)


def test_the_schedule_fills_both_calls_and_is_kept(day: Day, tmp_path: Path) -> None:
    found = train._schedule(day, day.logs / "log.txt")
    assert 0.05 < found["seconds"] < 1
    # 550 and 190 s, without starts and ends
    assert 500 / found["seconds"] < found["epochs"] < 640 / found["seconds"]
    assert not (tmp_path / "training/probe").exists()
    started = time.time()
    assert train._schedule(day, day.logs / "log.txt") == found and time.time() - started < 0.1


def test_a_run_that_is_cut_off_goes_on_in_the_next_call(day: Day, tmp_path: Path) -> None:
    (tmp_path / "training/schedule.json").write_text(json.dumps({"epochs": 40, "seconds": 0.1}))
    (row,) = train.train(dataclasses.replace(day, deadline=time.time() + 8 + 2.0))
    values = row.run()
    assert values["detail"].endswith("to be continued") and row.always
    returned = tmp_path / "results/training"
    assert sorted(path.name for path in returned.iterdir()) == ["last.ckpt"]
    assert 0 < int((returned / "last.ckpt").read_text()) < 40
    (row,) = train.train(day)
    values = row.run()
    assert "finished: wrote the weights" in values["detail"]
    assert (returned / "last.ckpt").read_text() == "40"
    assert (returned / "weights.safetensors").is_file()


def test_without_data_or_with_a_run_that_fails(day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training/schedule.json").write_text(json.dumps({"epochs": 2, "seconds": 0.1}))
    command = [sys.executable, "-c", "raise SystemExit('no memory left')"]
    monkeypatch.setattr(train, "_command", lambda *_: command)
    (row,) = train.train(day)
    values = row.run()
    assert values["status"] == "failed" and values["detail"].endswith("exit code 1: no memory left")
    (tmp_path / "training/camvid/train.txt").unlink()
    monkeypatch.setattr(train, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="no data in training: run gpu_pack --plan train"):
        row.run()
