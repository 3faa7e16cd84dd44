"""`liteseg train` on a few tiny pictures: loss, resuming, export and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

import pytorch_lightning as pl
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from liteseg.data import CAMVID_CLASSES
from liteseg.models import create_model
from liteseg.train import cli
from liteseg.train.callbacks import EMA
from liteseg.train.checkpoint import AtomicCheckpointIO, model_state, read_checkpoint
from liteseg.train.datamodule import SegmentationData
from liteseg.train.module import NotFiniteError, SegmentationModule, log_class_weights
from tests.data import folders

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folders.camvid(tmp_path / "camvid", {"train": 4, "val": 2}, size=(64, 80))


def _arguments(data: Path, out: Path, *more: str, epochs: int = 2, preset: str = "camvid_mobilenetv2") -> list[str]:
    return [
        *("--config", preset, "--data.root", str(data), "--out", str(out), "--data.batch_size", "2"),
        *("--data.augment.crop", "[32,64]", "--data.num_workers", "0", "--model.input_scale", "1.25"),
        *("--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--trainer.precision", "32-true"),
        *more,
    ]


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_loss_is_cross_entropy_on_full_size_logits() -> None:
    module = SegmentationModule(num_classes=11, class_weights="log", backbone_lr=0.1)
    module.loss_weight.copy_(torch.rand(11) + 0.5)
    module.eval()
    images, label = torch.randn(2, 3, 64, 96), torch.randint(0, 11, (2, 64, 96), dtype=torch.uint8)
    label[:, :9] = 255
    loss = module.loss(module.model.low_resolution_logits(images), label)
    expected = F.cross_entropy(module.model(images), label.long(), module.loss_weight, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)

    parameters = list(module.model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("threshold", "keep"), [(0.7, 0.01), (0.01, 0.3), (0.7, 0.9)])
def test_hard_pixels_only(weighted: bool, threshold: float, keep: float) -> None:
    module = SegmentationModule(
        num_classes=5, class_weights="log" if weighted else "none", ohem_threshold=threshold, ohem_keep=keep
    )
    if weighted:
        module.loss_weight.copy_(torch.rand(5) + 0.5)
    logits = (3 * torch.randn(2, 5, 8, 12)).requires_grad_()
    label = torch.randint(0, 5, (2, 32, 48), dtype=torch.uint8)
    label[0, :20] = 255
    loss = module.loss(logits, label)
    (ours,) = torch.autograd.grad(loss, logits)

    full = F.interpolate(logits, (32, 48), mode="bilinear", align_corners=True)
    losses = F.cross_entropy(full, label.long(), module.loss_weight, ignore_index=255, reduction="none")
    order = losses.detach().flatten().sort(descending=True).values
    limit = min(-np.log(threshold), float(order[int(keep * losses.numel()) - 1]))
    chosen = (losses >= limit * (1 - 1e-6)) & (label != 255)
    share = torch.ones(5) if module.loss_weight is None else module.loss_weight
    expected = losses[chosen].sum() / share[label[chosen].long()].sum()
    (theirs,) = torch.autograd.grad(expected, logits)
    assert 0 < int(chosen.sum()) and (keep > 0.5 or int(chosen.sum()) < int((label != 255).sum()))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_hard_pixels_of_a_void_batch_cost_nothing() -> None:
    module = SegmentationModule(num_classes=3, ohem_threshold=0.7)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    loss = module.loss(logits, torch.full((1, 32, 32), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_norms_and_biases_can_be_spared_the_decay() -> None:
    module = SegmentationModule(num_classes=3, decay_norms=False, weight_decay=0.01)
    module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_steps=10)
    module.trainer.fit_loop.setup_data = lambda: None
    type(module.trainer).estimated_stepping_batches, before = 10, type(module.trainer).estimated_stepping_batches
    try:
        optimizer = module.configure_optimizers()["optimizer"]
    finally:
        type(module.trainer).estimated_stepping_batches = before
    groups = optimizer.param_groups
    assert [(group["weight_decay"], group["initial_lr"]) for group in groups] == [
        (0.01, 0.01),
        (0.0, 0.01),
        (0.01, 0.05),
        (0.0, 0.05),
    ]
    assert all((p.ndim > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(module.model.parameters()))


def test_momentum_is_forgotten_when_the_rate_moves(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    known: list[bool] = []
    step = SegmentationModule.training_step

    def record(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        known.append(bool(self.trainer.optimizers[0].state))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", record)
    arguments = _arguments(data, tmp_path / "run", "--model.hold_epochs", "2", "--model.warmup_steps", "0", epochs=4)
    assert cli.main([*arguments, "--model.reset_momentum", "true", "--evaluate", "null"]) == 0
    # two steps an epoch; the rate moves at the start of the second and the fourth epoch
    assert known == [False, True, False, True, True, True, False, True]
    assert cli.main([*arguments, "--model.reset_momentum", "true", "--model.hold_epochs", "0"]) == 2


def test_all_void_batch_has_loss_zero_and_finite_gradients() -> None:
    module = SegmentationModule(num_classes=3)
    loss = module.loss(
        module.model.low_resolution_logits(torch.randn(2, 3, 32, 32)), torch.full((2, 32, 32), 255, dtype=torch.uint8)
    )
    loss.backward()
    assert loss.item() == 0
    assert all(bool(p.grad.isfinite().all()) for p in module.model.parameters() if p.grad is not None)


def test_two_epochs_then_weights_that_load(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = _arguments(data, out, "--export_dtype", "float16")
    assert cli.main(arguments) == 0

    checkpoint = read_checkpoint(out / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 4
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert 0 <= json.loads((out / "val.json").read_text())["mean_iou"] <= 1
    assert checkpoint["liteseg"]["config"]["model"]["backbone_lr"] == 0.01
    assert checkpoint["liteseg"]["versions"]["torch"] == torch.__version__

    model = create_model(weights=out / "weights.safetensors")
    assert (model.config.num_classes, model.config.input_scale) == (11, 1.25)
    assert model.config.class_names == CAMVID_CLASSES
    averaged = model_state(checkpoint)
    for key, value in model.state_dict().items():
        stored = averaged[key].half().float() if value.is_floating_point() else averaged[key]
        assert torch.equal(value, stored), key
    # the checkpoint itself gives the same model
    again = create_model(weights=out / "checkpoints" / "last.ckpt")
    assert again.config == model.config and _same(again.state_dict(), averaged)
    # the averaged weights, not those of the last step
    current = checkpoint["current_model_state"]["model.classifier.weight"]
    assert not torch.equal(current, averaged["classifier.weight"])

    with safe_open(out / "weights.safetensors", "pt") as file:
        text = file.metadata()["liteseg"]
    provenance = json.loads(text)["provenance"]
    assert (provenance["dataset"], provenance["split"], provenance["images"]) == ("camvid", "train", 4)
    assert (provenance["epochs"], provenance["steps"], provenance["seed"]) == (2, 4, 0)
    assert provenance["recipe"]["data"]["augment"]["crop"] == [32, 64]
    assert str(tmp_path) not in text, "a folder of this machine in a file that is passed on"


def test_class_weights_come_from_the_training_labels(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[torch.Tensor] = []
    step = SegmentationModule.training_step

    def record(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        seen.append(self.loss_weight.clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", record)
    assert cli.main(_arguments(data, tmp_path / "run", "--trainer.fast_dev_run", "true")) == 0
    shares = folders_shares(data)
    assert np.allclose(seen[0].numpy(), log_class_weights(shares), rtol=1e-6) and len(seen) == 1
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def folders_shares(data: Path) -> np.ndarray:
    ids = np.concatenate([np.asarray(Image.open(path)).ravel() for path in (data / "trainannot").iterdir()])
    counts = np.bincount(ids, minlength=12)[:11]
    return counts / counts.sum()


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    # with a worker, which draws pictures ahead of the step
    more = ("--data.num_workers", "1")
    assert cli.main(_arguments(data, tmp_path / "whole", *more)) == 0
    arguments = _arguments(data, tmp_path / "killed", *more)
    script = (
        "import os, signal, sys\n"
        "from liteseg.train import cli, module\n"
        "step = module.SegmentationModule.training_step\n"
        "def dying(self, batch, index):\n"
        "    if (self.current_epoch, index) == (1, 1):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, index)\n"
        "module.SegmentationModule.training_step = dying\n"
        "cli.main(sys.argv[1:])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "killed/checkpoints/last.ckpt")["global_step"] == 2

    assert cli.main(arguments) == 0
    whole, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert _same(whole, resumed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run of one epoch that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = _arguments(
        folders.camvid(folder / "camvid", {"train": 4, "val": 2}, size=(64, 80)), folder / "run", epochs=1
    )
    assert cli.main(arguments) == 0
    return arguments


def _weights(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--out") + 1]) / "weights.safetensors"


def test_finished_run_only_exports_again(finished: list[str], monkeypatch: Any) -> None:
    before = load_file(_weights(finished))
    _weights(finished).unlink()

    def must_not_run(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        raise AssertionError("trained again")

    monkeypatch.setattr(SegmentationModule, "training_step", must_not_run)
    assert cli.main(finished) == 0
    assert _same(before, load_file(_weights(finished)))


def test_resume_false_starts_over(finished: list[str]) -> None:
    first = load_file(_weights(finished))
    assert cli.main([*finished, "--resume", "false"]) == 0
    assert read_checkpoint(_weights(finished).parent / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert _same(first, load_file(_weights(finished)))


def test_another_run_in_the_folder_is_refused(finished: list[str], capsys: Any) -> None:
    assert cli.main([*finished, "--model.switches", "{filters: 32}"]) == 2
    assert "holds a run with model.switches" in capsys.readouterr().err.splitlines()[-1]


def test_broken_checkpoint_is_named(data: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a file")
    assert cli.main(_arguments(data, tmp_path / "run")) == 2
    assert "last.ckpt: not a whole checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_interrupted_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "liteseg": {}, "epoch": 1}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path)["epoch"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_average_follows_the_weights_and_ends_at_the_given_decay() -> None:
    callback = EMA(0.9)
    model = nn.BatchNorm1d(2)
    callback.setup(pl.Trainer(logger=False, enable_checkpointing=False), _Holder(model), "fit")
    average = callback._average_model
    expected = None
    for count in range(120):
        with torch.no_grad():
            model.weight.fill_(float(count % 7))
        model.num_batches_tracked.fill_(count)
        average.update_parameters(_Holder(model))
        decay = min(0.9, (1 + count) / (10 + count))
        expected = float(count % 7) if expected is None else decay * expected + (1 - decay) * (count % 7)
    averaged = average.module.model
    assert averaged.weight.tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert averaged.num_batches_tracked.item() == 119


class _Holder(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def test_backbone_and_head_have_their_own_rates(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    rates: list[list[float]] = []
    step = SegmentationModule.training_step

    def record(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        groups = self.trainer.optimizers[0].param_groups
        rates.append([group["lr"] for group in groups])
        backbone = {id(p) for p in self.model.backbone.parameters()}
        assert {id(p) for p in groups[0]["params"]} == backbone
        assert sum(len(group["params"]) for group in groups) == len(list(self.model.parameters()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", record)
    assert cli.main(_arguments(data, tmp_path / "run", "--model.warmup_steps", "2")) == 0
    factors = [0.5, 1.0, 0.5**0.9, 0.25**0.9]
    assert np.allclose(rates, [[0.01 * f, 0.05 * f] for f in factors])


def test_not_finite_loss_names_step_and_files(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    loss = SegmentationModule.loss

    def broken(self: SegmentationModule, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return loss(self, logits, label) * (float("nan") if self.global_step == 1 else 1.0)

    monkeypatch.setattr(SegmentationModule, "loss", broken)
    assert cli.main(_arguments(data, tmp_path / "run")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "got nan at step 1 (epoch 0)" in last and last.count("camvid/train/train_") == 2
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    with pytest.raises(NotFiniteError):
        cli.main([*_arguments(data, tmp_path / "run"), "--debug"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_corrupt_picture_is_named(data: Path, tmp_path: Path, workers: str, capsys: Any) -> None:
    (data / "train" / "train_002.png").write_bytes(b"nothing")
    assert cli.main(_arguments(data, tmp_path / "run", "--data.num_workers", workers)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("liteseg: error: ") and "train_002.png: not a picture" in last


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--data.root", "/no/such/folder"), "/no/such/folder: folder not found; expected a CamVid folder"),
        (("--data.name", "kitti"), "--data.name: expected one of camvid, cityscapes, folder"),
        (("--model.name", "lightseg"), "--model.name: expected one of liteseg"),
        (("--model.name", "liteseg"), "encoder: expected one of mobilenetv2, shufflenet, darknet19, timm/<model>"),
        (("--model.backbone_weights", "/no/such/file"), "/no/such/file"),
        (("--model.learning_rate", "1"), "model.learning_rate"),
        (("--model.backbone_lr", "fast"), "backbone_lr"),
        (("--data.num_workers", "-1"), "--data.num_workers: expected at least 0, got -1"),
        (("--config", "no_such_preset"), "--config: expected a file or a preset such as camvid_mobilenetv2"),
        (
            ("--data.augment.scale", "[2,1]"),
            "--data.augment.scale: expected two rising numbers above 0, got [2",
        ),
        (("--ema_decay", "2"), "--ema_decay: expected a number between 0 and 1"),
        (("--trainer.accelerator", "toaster"), "toaster"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    data: Path, tmp_path: Path, more: tuple[str, ...], expected: str, capsys: Any
) -> None:
    assert cli.main([*_arguments(data, tmp_path / "run"), *more]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("liteseg: error: ") and expected in last


def test_wrong_key_in_a_file(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  nesterow: true\n")
    assert cli.main(["--config", str(tmp_path / "mine.yaml"), "--data.root", str(tmp_path)]) == 2
    assert "nesterow" in capsys.readouterr().err.splitlines()[-1]


def test_start_from_weights(finished: list[str]) -> None:
    weights = str(_weights(finished))
    module = SegmentationModule(num_classes=11, weights=weights)
    assert _same(module.model.state_dict(), load_file(weights))
    with pytest.raises(ValueError, match="expected one of weights and backbone_weights, got both"):
        SegmentationModule(num_classes=11, weights=weights, backbone_weights=weights)


def test_start_from_weights_of_other_classes(finished: list[str], tmp_path: Path, capsys: Any) -> None:
    root = folders.cityscapes(tmp_path, "zips", "fine", ("train", "val"))
    arguments = [*_arguments(root, tmp_path / "run"), "--data.name", "cityscapes", "--weights", str(_weights(finished))]
    assert cli.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--model.num_classes: expected 11 for the weights" in last and "got 19; " in last
    assert 'weights_mode="all-but-classifier"' in last and "liteseg train: --weights-mode" in last
    for mode in (("--weights-mode", "all-but-classifier"), ("--weights-mode=backbone",)):
        assert cli.main([*arguments, *mode, "--trainer.fast_dev_run", "true"]) == 0
    assert cli.main([*arguments, "--weights-mode", "head"]) == 2


def test_labels_on_stored_pixels_and_value_range(data: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in [*(data / "train").iterdir(), *(data / "val").iterdir()]:
        Image.open(path).save(path, exif=exif)
    more = ("--data.labels_on", "stored", "--data.value_range", "[0,4095]", "--data.augment.crop", "[32,32]")
    assert cli.main(_arguments(data, tmp_path / "run", *more, epochs=1)) == 0
    # the scores at the end are of pictures read in the same way
    settings = json.loads((tmp_path / "run" / "val.json").read_text())["settings"]
    assert settings["first_image"] == "80x64"
    found = SegmentationData(str(data), value_range=4095.0, labels_on="stored")
    for split in (found.train_set, found.val_set):
        assert (split.value_range, split.labels_on) == (4095.0, "stored")


def test_a_loss_of_ones_own(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "losses_for_a_test.py").write_text(
        "import torch\n"
        "from torch.nn import functional as F\n"
        "seen = []\n"
        "name = 'no function'\n"
        "def dice(logits, label):\n"
        "    seen.append((tuple(logits.shape), tuple(label.shape), label.dtype))\n"
        "    small = F.interpolate(label[:, None].float(), logits.shape[-2:]).long()[:, 0]\n"
        "    known = (small != 255).unsqueeze(1)\n"
        "    truth = F.one_hot(small.clamp(max=logits.shape[1] - 1), logits.shape[1]).permute(0, 3, 1, 2) * known\n"
        "    shares = logits.softmax(1) * known\n"
        "    both = 2 * (shares * truth).sum((0, 2, 3))\n"
        "    return 1 - (both / ((shares + truth).sum((0, 2, 3)) + 1e-6)).mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    none = ("--model.class_weights", "none")
    try:
        arguments = [*_arguments(data, tmp_path / "run"), "--trainer.fast_dev_run", "true", "--model.criterion"]
        assert cli.main([*arguments, "losses_for_a_test.dice", *none]) == 0
        # the small logits, and whole labels
        assert sys.modules["losses_for_a_test"].seen == [((2, 11, 8, 16), (2, 32, 64), torch.uint8)]
        for wrong, expected in (
            (("losses_for_a_test.dice",), "expected class_weights none"),
            (("losses_for_a_test.name", *none), "--model.criterion: expected a function, got losses_for_a_test.name"),
            (("losses_for_a_test.lovasz", *none), "criterion: expected a name in losses_for_a_test, got lovasz"),
            (("dice", *none), "criterion: expected the path of something in a module, such as"),
        ):
            assert cli.main([*arguments, *wrong]) == 2
            assert expected in capsys.readouterr().err.splitlines()[-1]
    finally:
        sys.modules.pop("losses_for_a_test", None)


def test_a_pipeline_of_ones_own(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "pipeline_for_a_test.py").write_text(
        "seen = []\n"
        "def halves(image, mask):\n"
        "    seen.append(image.shape)\n"
        "    return {'image': image[:, :40], 'mask': mask[:, :40]}\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        arguments = [*_arguments(data, tmp_path / "run"), "--trainer.fast_dev_run", "true", "--data.transform"]
        assert cli.main([*arguments, "pipeline_for_a_test.halves"]) == 0
        assert set(sys.modules["pipeline_for_a_test"].seen) == {(64, 80, 3)}
        for wrong, expected in (
            (("pipeline_for_a_test.seen",), "--data.transform: expected a pipeline (an object that is called), got"),
            (("pipeline_for_a_test.halves", "--data.passes", "[{}]"), "--data.passes: expected none with a transform"),
        ):
            assert cli.main([*arguments, *wrong]) == 2
            assert expected in capsys.readouterr().err.splitlines()[-1]
    finally:
        sys.modules.pop("pipeline_for_a_test", None)


def test_data_of_ones_own(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    caplog.set_level("INFO")
    root = folders.own(tmp_path / "own", size=(64, 80))
    arguments = _arguments(root, tmp_path / "run", epochs=1, preset="folder_mobilenetv2")
    weights = ("--weights", "camvid", "--weights-mode", "all-but-classifier")
    folders.write_label(root / "masks/val/val_001_mask.png", np.full((64, 80), 3, np.uint8))
    assert cli.main([*arguments, *weights]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "val_001_mask.png: label ids: expected 0, 7, 200, 201 and 9, 255 (void), got 3" in last
    folders.write_label(root / "masks/val/val_001_mask.png", np.full((64, 80), 7, np.uint8))
    assert cli.main([*arguments, *weights]) == 0
    assert "train: 4 images, 4 label files" in caplog.text and "flower bed" in caplog.text
    assert json.loads((tmp_path / "run" / "val.json").read_text())["images"] == 2
    model = create_model(weights=tmp_path / "run" / "weights.safetensors")
    assert model.config.class_names == ("grass", "path", "flower bed")


def test_print_config_reads_back(data: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*_arguments(data, tmp_path / "run"), "--print_config"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "backbone_lr: 0.01" in text and "max_epochs: 2" in text
    (tmp_path / "printed.yaml").write_text(text)
    assert cli.main(["--config", str(tmp_path / "printed.yaml"), "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("tensorboard", [True, False])
def test_logs(data: Path, tmp_path: Path, tensorboard: bool, monkeypatch: Any) -> None:
    if tensorboard:
        pytest.importorskip("tensorboard")
    else:
        monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "run"
    assert (
        cli.main(_arguments(data, out, "--trainer.logger", "null", "--trainer.log_every_n_steps", "1", epochs=1)) == 0
    )
    names = {path.name for path in out.iterdir()}
    assert "config.yaml" in names and "weights.safetensors" in names
    if tensorboard:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        assert any(name.startswith("events.out") for name in names)
        events = EventAccumulator(str(out)).Reload()
        scalars = events.Tags()["scalars"]
        assert {"train/loss", "val/miou", "val_iou/sky", "val_iou/road"} <= set(scalars)
        assert any(name.startswith("lr-SGD") for name in scalars)
        # both validation pictures: prediction and truth side by side
        assert events.Tags()["images"] == ["val/0", "val/1"]
        assert (events.Images("val/1")[0].width, events.Images("val/1")[0].height) == (160, 64)
    else:
        assert "val/miou" in (out / "metrics.csv").read_text().splitlines()[0]


def test_real_backbone_weights(shared: Path, data: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "mobilenet_v2_imagenet_int8dq.safetensors"
    assert cli.main(_arguments(data, tmp_path / "run", "--model.backbone_weights", str(path), epochs=1)) == 0
    with safe_open(tmp_path / "run" / "weights.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["liteseg"])["provenance"]["recipe"]
    assert recipe["model"]["backbone_weights"] == {
        "file": path.name,
        "sha256": "2c337f8fc95119e28ed42b8975161f40237bc48de2b2879e929383e220605589",
    }


def test_wrong_backbone_weights_are_one_line(data: Path, tmp_path: Path, capsys: Any) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    arguments = _arguments(data, tmp_path / "run", "--model.backbone_weights", str(tmp_path / "other.safetensors"))
    assert cli.main(arguments) == 2
    assert "other.safetensors" in capsys.readouterr().err.splitlines()[-1]
