"""Trainings that are killed, run out of disk, or lose their data: nothing half-written, and the same end as without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from liteseg.data import SegmentationDataset
from liteseg.train import cli
from liteseg.train.checkpoint import read_checkpoint
from liteseg.train.datamodule import EpochSampler
from liteseg.train.module import SegmentationModule
from tests.data import folders

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 4, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "camvid"
    return folders.camvid(root, {"train": 2 * STEPS, "val": 2}, size=(64, 80))


def _arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--config", "camvid_mobilenetv2", "--data.root", str(data), "--out", str(out), "--deterministic"),
        *("--data.batch_size", "2", "--data.augment.crop", "[64,96]", "--data.num_workers", "0"),
        *("--model.input_scale", "1", "--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--trainer.precision", "32-true"),
        *("--model.backbone_lr", "1e-4", "--model.head_lr", "1e-3", "--checkpoint_steps", "1", *more),
    ]


def _mortal(mode: str, count: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.mortal", mode, "0", str(count), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def _assert_same(first: Any, second: Any, where: str = "checkpoint") -> None:
    """Equality of everything in two checkpoints, tensors bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (one, two) in enumerate(zip(first, second, strict=True)):
            _assert_same(one, two, f"{where}.{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def _trained(out: Path) -> dict[str, Any]:
    """What decides how a run goes on: weights, averages, optimizer, schedule, position in the data."""
    checkpoint = read_checkpoint(out / "checkpoints" / "last.ckpt")
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    return {key: checkpoint[key] for key in (*keys, "epoch", "global_step", "SegmentationData")}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    done = _mortal("moments", 0, _arguments(data, out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ended with 0 at step {EPOCHS * STEPS}\n"
    return out


def _assert_ended_like(whole: Path, out: Path) -> None:
    _assert_same(_trained(whole), _trained(out))
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert (out / "val.json").read_bytes() == (whole / "val.json").read_bytes()
    best = [read_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"] for folder in (whole, out)]
    _assert_same(*best)
    # nothing of the killed ones is left
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (whole, out)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_killed_at_twenty_moments_ends_the_same(data: Path, whole: Path, tmp_path: Path) -> None:
    done = _mortal("moments", 20, _arguments(data, tmp_path))
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"ended with (-?\d+) at step (\d+)", done.stdout)
    assert len(ends) == 21 and ends[-1] == ("0", str(EPOCHS * STEPS))
    assert sum(code == "-9" for code, _ in ends) >= 10, done.stdout
    steps = [int(step) for _, step in ends]
    # it went on each time, from where it was, also from within an epoch
    assert steps == sorted(steps) and len(set(steps)) >= 4 and any(step % STEPS for step in steps), steps
    _assert_ended_like(whole, tmp_path)


@pytest.mark.parametrize(("mode", "count"), [("write", 4), ("rename", 9)])
def test_killed_while_a_checkpoint_is_written(data: Path, whole: Path, tmp_path: Path, mode: str, count: int) -> None:
    done = _mortal(mode, count, _arguments(data, tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"ended with -9 at step [1-9]\d*", first), done.stdout
    assert second == f"ended with 0 at step {EPOCHS * STEPS}"
    _assert_ended_like(whole, tmp_path)


def test_full_disk_is_one_line_and_keeps_the_old_checkpoint(data: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    arguments = _arguments(data, tmp_path / "run", "--trainer.max_epochs", str(EPOCHS + 1))
    done = _mortal("full", 1_000_000, arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"liteseg: error: {tmp_path / 'run/checkpoints/last.ckpt'}: not written: File too large"
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before
    assert not [path for path in (tmp_path / "run").rglob(".*")]


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    original = SegmentationModule.training_step

    def training_step(self: SegmentationModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            act()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", training_step)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_vanished_folder_is_named(
    data: Path, tmp_path: Path, on_error: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = shutil.copytree(data, tmp_path / "camvid")
    _at_step(monkeypatch, 2, lambda: shutil.rmtree(root))
    assert cli.main(_arguments(root, tmp_path / "run", "--data.on_error", on_error)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"liteseg: error: .*/camvid/train(/train_0\d\d\.png: no such file|: folder not found)", last), last
    # the next batch was loaded already
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


def test_unreadable_images_are_skipped_by_option(data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "camvid")
    (root / "train" / "train_003.png").write_bytes(b"nothing")
    (root / "trainannot" / "train_007.png").write_bytes(b"nothing")
    (root / "val" / "val_001.png").write_bytes(b"nothing")
    arguments = _arguments(root, tmp_path / "run", "--data.on_error", "skip", "--trainer.max_epochs", "1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cli.main([*arguments, "--evaluate", "null"]) == 0
    texts = " ".join(str(warning.message) for warning in caught)
    for name in ("train_003.png", "train_007.png", "val_001.png"):
        assert re.search(rf"skipped: .*{name}: not a picture", texts), name
    # as many steps as with whole files, and only the readable image was counted
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == STEPS


def test_dead_loader_process_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original = SegmentationDataset.load
    parent = os.getpid()

    def dying(self: SegmentationDataset, index: int) -> Any:
        if index == 5 and os.getpid() != parent:
            os._exit(1)
        return original(self, index)

    monkeypatch.setattr(SegmentationDataset, "load", dying)
    assert cli.main(_arguments(data, tmp_path / "run", "--data.num_workers", "1", "--data.val_batch_size", "1")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("liteseg: error: a loader process died") and "DataLoader worker" in last


def test_resumed_order_of_images_within_an_epoch() -> None:
    whole = list(EpochSampler(10, seed=3, batch=2, passes=2))
    assert len(whole) == 20 and {turn for turn, _ in whole} == {0, 1}
    for turn in (0, 1):
        assert sorted(index for t, index in whole if t == turn) == list(range(10))
    sampler = EpochSampler(10, seed=3, batch=2, passes=2, start=6)
    assert list(sampler) == whole[6:] and len(sampler) == 20
    # only the first epoch is cut
    sampler.set_epoch(1)
    assert len(list(sampler)) == 20
    assert not np.array_equal([index for _, index in sampler], [index for _, index in whole])
