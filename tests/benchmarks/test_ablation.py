"""benchmarks/ablation.py on a few tiny pictures: equal budgets, a row is run once, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from benchmarks import ablation
from liteseg.bench.record import read
from tests.data import folders


def test_rows_take_equal_budgets_and_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders.camvid(tmp_path / "camvid", {"train": 4, "val": 2, "test": 2}, size=(64, 80))
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--passes", "4", "--seeds", "0", "--out", str(out), "--"]
    arguments += ["--data.batch_size", "2", "--data.augment.crop", "[32,64]", "--data.num_workers", "0"]
    arguments += ["--trainer.precision", "32-true"]
    assert ablation.main(arguments) == 0
    rows = read(out / "ablation.csv")
    assert [row["row"] for row in rows] == list(ablation.ROWS)
    # four passes of two batches, as four epochs or as one of four passes
    assert {row["steps"] for row in rows} == {"8"}
    assert all(0 <= float(row["mean IoU"]) <= 100 for row in rows)
    before = capsys.readouterr().out
    assert "| + DW |" in before

    assert ablation.main(arguments) == 0
    assert read(out / "ablation.csv") == rows
    assert capsys.readouterr().out.strip() == ablation.table(rows)


def test_table_gives_mean_and_spread() -> None:
    rows = [{"row": "baseline", "mean IoU": iou, "steps": "8", "pixels": "1.00"} for iou in ("50.00", "52.00")]
    assert ablation.table(rows).splitlines()[2:] == ["| baseline | 51.00 | 1.41 | 2 | 8 | 1.00 |"]


def test_odd_budget_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablation.main(["--data", str(tmp_path), "--passes", "6"])
    assert "--passes: expected a multiple of 4, got 6" in capsys.readouterr().err
