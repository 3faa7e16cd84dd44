"""Two processes on the CPU against one: training, validation, evaluation, prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from safetensors.torch import load_file

import liteseg
from liteseg.cli import main
from liteseg.data import dataset
from liteseg.evaluate import evaluate
from liteseg.models import create_model
from liteseg.train import cli as train_cli
from liteseg.train.checkpoint import model_state
from liteseg.train.sync import LayerSync
from tests.data import folders
from tests.train.processes import torchrun


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "camvid"
    # an odd number of images to validate on: one process has one more
    return folders.camvid(root, {"train": 9, "val": 3, "test": 5}, size=(64, 80))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("liteseg_mobilenetv2", num_classes=11).train()
    with torch.no_grad():
        # statistics of real activations, or the output is all one class
        for _ in range(20):
            model(torch.randn(4, 3, 64, 96))
        model.classifier.bias -= model.eval()(torch.randn(4, 3, 64, 96)).mean((0, 2, 3))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    liteseg.save_weights(model, path)
    return path


def _arguments(data: Path, out: Path, batch: int, *more: str) -> list[str]:
    return [
        *("--config", "camvid_mobilenetv2", "--data.root", str(data), "--out", str(out)),
        *("--data.batch_size", str(batch), "--data.val_batch_size", "1", "--data.augment.crop", "[64,96]"),
        *("--data.num_workers", "0", "--model.input_scale", "1", "--model.warmup_steps", "0", "--ema_decay", "0"),
        *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.precision", "64-true"),
        *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--deterministic", *more),
    ]


def test_two_processes_train_like_one(data: Path, weights: Path, tmp_path: Path) -> None:
    start = ("--model.weights", str(weights))
    assert train_cli.main(_arguments(data, tmp_path / "one", 4, *start)) == 0
    done = torchrun("train", *_arguments(data, tmp_path / "two", 2, *start))
    assert done.returncode == 0, done.stderr
    checkpoints = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two")
    ]
    assert [checkpoint["global_step"] for checkpoint in checkpoints] == [4, 4]
    one, two = (model_state(checkpoint) for checkpoint in checkpoints)
    before, total = load_file(weights), 0.0
    for key, value in one.items():
        if value.is_floating_point():
            # sums in another order; in float32 the steps would make far larger differences of their rounding
            moved = float((value - before[key]).abs().max())
            assert float((two[key] - value).abs().max()) <= 1e-6 * moved + 1e-9, key
            total += moved
        else:
            assert torch.equal(two[key], value), key
    assert total > 1, "hardly anything was trained"
    # validation saw every image once: one process counts the same on the best weights
    best = torch.load(tmp_path / "two" / "checkpoints" / "best.ckpt", weights_only=True)
    model = create_model("liteseg_mobilenetv2", num_classes=11)
    model.load_state_dict(model_state(best))
    result = evaluate(model.double().to(memory_format=torch.channels_last), dataset("camvid", data, "val"))
    state = next(value for key, value in best["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert float(state["best_model_score"]) == pytest.approx(result.mean_iou, rel=1e-6)
    # only the first process speaks
    assert done.stderr.count("wrote ") == 1 and done.stderr.count("pixel accuracy  ") == 1


def test_two_processes_evaluate_exactly_like_one(data: Path, weights: Path, tmp_path: Path) -> None:
    for split in ("val", "test"):
        arguments = ["evaluate", "--weights", weights, "--dataset", "camvid", "--data", data, "--split", split]
        assert main([*map(str, arguments), "--json", str(tmp_path / "one.json"), "--quiet"]) == 0
        done = torchrun(*arguments, "--json", tmp_path / "two.json", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
        assert one == two
        assert len({tuple(row) for row in one["matrix"]}) > 5 and np.count_nonzero(np.sum(one["matrix"], axis=0)) > 3
        assert done.stdout.count("mean IoU") == 1


def test_files_are_shared_out(weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(5):
        folders.write_image(tmp_path / "in" / f"{index}.png", (48, 64), rng)
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    arguments = ["predict", tmp_path / "in", "--weights", weights, "--device", "cpu", "--quiet"]
    assert main([*map(str, arguments), "--out", str(tmp_path / "one")]) == 1
    done = torchrun(*arguments, "--out", tmp_path / "two")
    assert "5 files segmented, 10 results" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr.count("broken.png: not a picture") == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(one) == 10 and one == two


def test_one_broken_image_ends_all_processes_with_one_reason(data: Path, weights: Path, tmp_path: Path) -> None:
    root = folders.camvid(tmp_path / "camvid", {"val": 3}, size=(64, 80))
    (root / "val" / "val_001.png").write_bytes(b"nothing")
    done = torchrun("evaluate", "--weights", weights, "--dataset", "camvid", "--data", root, "--device", "cpu")
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("val_001.png: not a picture in a format that can be read") == 1


def _normalise_half(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, x = _norm(), torch.randn(4, 3, 5, 6)
    model = LayerSync().apply(model)
    half = x[2 * rank : 2 * rank + 2].clone().requires_grad_()
    y = model(half)
    (y * torch.arange(y.numel()).view_as(y) / y.numel() * (rank + 1)).sum().backward()
    torch.save([y, half.grad, [p.grad for p in model.parameters()], model.state_dict()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    return nn.Sequential(norm)


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_normalise_half, (tmp_path,), nprocs=2)
    torch.manual_seed(0)
    model, x = _norm(), torch.randn(4, 3, 5, 6)
    x.requires_grad_()
    y = model(x)
    share = torch.arange(y[:2].numel()).view_as(y[:2]) / y[:2].numel()
    (y[:2] * share).sum().backward(retain_graph=True)
    (y[2:] * share * 2).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x.grad)
    for index, parameter in enumerate(model.parameters()):
        torch.testing.assert_close(parts[0][2][index] + parts[1][2][index], parameter.grad)
    for part in parts:
        for key, value in model.state_dict().items():
            torch.testing.assert_close(part[3][key], value)
