"""Ctrl-C while `liteseg train` runs: the step is finished and saved, and the next run goes on from it."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from liteseg.train import cli
from liteseg.train.checkpoint import read_checkpoint
from liteseg.train.module import SegmentationModule
from tests.data import folders

STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "camvid"
    return folders.camvid(root, {"train": 2 * STEPS, "val": 2}, size=(64, 80))


def _arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--config", "camvid_mobilenetv2", "--data.root", str(data), "--out", str(out), "--deterministic"),
        *("--data.batch_size", "2", "--data.augment.crop", "[32,64]", "--data.num_workers", "1"),
        *("--model.input_scale", "1", "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--trainer.precision", "32-true"),
        *("--evaluate", "null", *more),
    ]


def _ctrl_c(monkeypatch: pytest.MonkeyPatch, where: str, times: int = 1, *, after: int = 0) -> None:
    """The terminal's signal, at the first call of a method of the module once `after` steps are done."""
    original, left = getattr(SegmentationModule, where), times

    def method(self: SegmentationModule, *args: Any) -> Any:
        nonlocal left
        if self.global_step == after and not self.trainer.sanity_checking:
            while left:
                left -= 1
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(SegmentationModule, where, method)


def _step(out: Path) -> int:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"]


def test_saves_goes_on_and_ends_as_without(data: Path, tmp_path: Path, capsys: Any, caplog: Any, recwarn: Any) -> None:
    caplog.set_level("INFO")
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert cli.main(_arguments(data, whole)) == 0
    last = out / "checkpoints" / "last.ckpt"
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        _ctrl_c(patch, "training_step", after=1)
        assert cli.main(_arguments(data, out)) == 130
    assert signal.getsignal(signal.SIGINT) is before
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == f"liteseg: interrupted; saved step 2 in {last}: the same command goes on from there"
    assert "liteseg: stopping after this step" in err and _step(out) == 2
    # at the end of an epoch, in the middle of validation
    with pytest.MonkeyPatch.context() as patch:
        _ctrl_c(patch, "validation_step", after=STEPS)
        assert cli.main(_arguments(data, out)) == 130
    assert f"saved step {STEPS} in {last}" in capsys.readouterr().err and _step(out) == STEPS
    caplog.clear()
    recwarn.clear()
    assert cli.main(_arguments(data, out)) == 0
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    # a run that goes on says so, and nothing about how new ones start, or about other people's products
    said = caplog.text + " ".join(str(warning.message) for warning in recwarn)
    assert f"RESUMING at step {STEPS} from {last}" in said
    assert "SCRATCH" not in said and "Tip:" not in said and "is not empty" not in said and "was not set" not in said


def test_twice_ends_at_once(data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    _ctrl_c(monkeypatch, "training_step", 2, after=1)
    assert cli.main(_arguments(data, tmp_path / "run")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "liteseg: interrupted"
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_before_the_first_step_it_ends_at_once(data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    _ctrl_c(monkeypatch, "configure_optimizers")
    assert cli.main(_arguments(data, tmp_path / "run")) == 130
    assert "stopping after" not in capsys.readouterr().err


def test_a_new_run_says_what_it_starts_from(data: Path, tmp_path: Path) -> None:
    arguments = _arguments(data, tmp_path / "run", "--trainer.fast_dev_run", "true", "--data.num_workers", "0")
    with pytest.warns(UserWarning, match="TRAINING FROM SCRATCH"):
        assert cli.main(arguments) == 0


def test_warnings_are_one_line_without_source() -> None:
    place = ("a\nb", UserWarning, "module.py", 3, "rank_zero_warn(")
    with cli._quiet():
        assert warnings.formatwarning(*place) == "liteseg: warning: a b\n"
    assert "module.py" in warnings.formatwarning(*place)
