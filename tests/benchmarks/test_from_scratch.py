"""benchmarks/from_scratch.py on a few tiny pictures: equal budgets, a network is run once, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

import torch

from benchmarks import from_scratch
from liteseg.bench.networks import OURS
from liteseg.bench.record import read
from liteseg.models.peers import PEERS
from liteseg.train import cli
from tests.data import folders


def test_networks_take_equal_budgets_and_run_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folders.camvid(tmp_path / "camvid", {"train": 4, "val": 2, "test": 2}, size=(64, 80))
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--passes", "2", "--out", str(out), "--networks", "dsnet", "shufflenet", "--"]
    arguments += ["--data.batch_size", "2", "--data.augment.crop", "[64,64]", "--data.num_workers", "0"]
    assert from_scratch.main(arguments) == 0
    rows = read(out / "from-scratch.csv")
    assert [(row["network"], row["steps"], row["batch"]) for row in rows] == [
        ("dsnet", "4", "2"),
        ("shufflenet", "4", "2"),
    ]
    assert all(0 <= float(row["mean IoU"]) <= 100 for row in rows)
    assert rows[0]["parameters"] == str(sum(p.numel() for p in _model(out, "dsnet").parameters()))
    # the preset's backbone has a rate of its own
    saved = torch.load(out / "camvid_shufflenet_2_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len({group["initial_lr"] for group in saved["optimizer_states"][0]["param_groups"]}) == 1
    before = capsys.readouterr().out
    assert "2 passes over the training images (4 steps of 2), seed 0" in before and "| liteseg_shufflenet |" in before

    monkeypatch.setattr(cli, "main", None)
    assert from_scratch.main(arguments) == 0
    assert read(out / "from-scratch.csv") == rows
    assert capsys.readouterr().out in before


def _model(out: Path, network: str) -> torch.nn.Module:
    from liteseg.models import create_model

    return create_model(weights=out / f"camvid_{network}_2_0" / "weights.safetensors")


def test_all_networks_are_there() -> None:
    assert sorted(from_scratch.NETWORKS) == sorted((*(name.removeprefix("liteseg_") for name in OURS), *PEERS))


def test_the_best_comes_first() -> None:
    row = {"pixel accuracy": "80.00", "parameters": "1234567"}
    rows = [row | {"network": "enet", "mean IoU": "9.10"}, row | {"network": "mobilenetv2", "mean IoU": "10.20"}]
    assert from_scratch.table(rows).splitlines()[2:] == [
        "| liteseg_mobilenetv2 | 10.20 | 80.00 | 1.23 |",
        "| enet | 9.10 | 80.00 | 1.23 |",
    ]
