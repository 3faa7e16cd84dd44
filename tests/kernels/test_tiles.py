"""The launch tables: what they hold, and which row is chosen."""

from __future__ import annotations

import csv

import pytest
import torch

from liteseg_kernels.triton import _tiles
from liteseg_kernels.triton._tiles import Key, Tile


def _power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def test_the_table_is_well_formed() -> None:
    lines = _tiles.read()
    with _tiles.PATH.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == _tiles.COLUMNS
    assert len(_tiles.table()) == len(lines), "two rows with one key"
    for key, tile in _tiles.table().items():
        assert key.target in ("any", "sm_80", "sm_90", "sm_100", "gfx942"), key
        assert all(map(_power, tile[:5])) and tile.warps in (4, 8) and 1 <= tile.stages <= 4, key
        # every device finds a row
        assert any(k.target == "any" and k[:3] == key[:3] for k in _tiles.table()), key
    # a time has its place and date
    assert all(bool(line["us"]) == bool(line["measured"]) for line in lines)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        (16, 1, "any"): 1,
        (64, 1, "any"): 2,
        (64, 6, "any"): 3,
        (64, 1, "sm_80"): 4,
        (64, 9, "sm_80"): 5,
    }
    made = {Key("t", "s", "half", c, d, to): Tile(n, 1, 1, 1, 4, 1) for (c, d, to), n in rows.items()}
    monkeypatch.setattr(_tiles, "table", lambda: made)
    _tiles._chosen.cache_clear()
    yield
    _tiles._chosen.cache_clear()


@pytest.mark.parametrize(
    ("channels", "dilation", "target", "wanted"),
    [
        (1, 1, "sm_90", 1),
        (16, 9, "sm_90", 1),
        (17, 1, "sm_90", 2),
        (64, 5, "sm_90", 2),
        (500, 6, "sm_90", 3),
        (500, 12, "sm_90", 3),
        (64, 5, "sm_80", 4),
        (64, 6, "sm_80", 3),
        (64, 9, "sm_80", 5),
        (16, 1, "sm_80", 1),
    ],
)
def test_a_row_is_chosen_by_channels_dilation_and_target(
    channels: int, dilation: int, target: str, wanted: int, table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiles, "target_of", lambda device: target)
    x = torch.empty(1, dtype=torch.float16)
    assert _tiles.choose("t", "s", x.dtype, x, channels, dilation).height == wanted


def test_eight_warps_are_held_to_half_the_registers() -> None:
    assert Tile(8, 8, 16, 64, 8, 1).options() == {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
    assert "maxnreg" not in Tile(8, 8, 16, 64, 4, 1).options()
    assert "maxnreg" not in Tile(8, 8, 16, 64, 8, 1, limited=False).options()
