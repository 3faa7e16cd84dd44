"""The notebook's cells run, one after another, and what it shows is true."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first_hour.ipynb"


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    # committed without what a run leaves
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "first_hour"}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, {cell['id']}", "exec"), names)
    truth = np.array(Image.open(tmp_path / "LAWN" / "labels" / "val" / "000.png")) == 255
    assert names["labels"].shape == truth.shape
    found = names["labels"] == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.6
    assert sorted(os.listdir(tmp_path)) == ["LAWN", "runs"]
