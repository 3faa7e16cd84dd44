"""The launch tables: which tile a kernel runs with, from tiles.csv beside this file.

A row is chosen on the host by kernel, element type, channels, dilation and device, never by the size of a map: a new
size compiles nothing. Columns of tiles.csv:

table, stage    the kernel; its file calls `choose(table, stage, ...)`
kind            "half" or "single" (bytes of an element), "nhwc" or "nchw", or "any", as the kernel asks
channels        most channels that the row is for; the widest row takes more than that too. 0: not asked for
dilation        least dilation that the row is for
target          "any", or the architecture whose devices take this row instead: sm_80, sm_90, sm_100, gfx942
height, width   pixels of a tile
inner, outer    channels that are summed over in one step, and those that are written
warps, stages   of the launch
us, measured    time at the layers it was measured at, and where and when (benchmarks/tune.py); empty: not timed yet
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

PATH = Path(__file__).with_name("tiles.csv")
KEY = ("table", "stage", "kind", "channels", "dilation", "target")
COLUMNS = (*KEY, "height", "width", "inner", "outer", "warps", "stages", "us", "measured")


class Tile(NamedTuple):
    """Pixels (height, width) x channels read x channels written, warps, stages."""

    height: int
    width: int
    inner: int
    outer: int
    warps: int
    stages: int
    # AMD's compiler knows no such limit
    limited: bool = True

    def options(self) -> dict[str, int]:
        """Launch options. Eight warps are held to 128 registers, so that two programs fit on a multiprocessor."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | {"maxnreg": 128} if self.warps == 8 and self.limited else options


class Key(NamedTuple):
    """What a row is chosen by; the columns of `KEY`."""

    table: str
    stage: str
    kind: str
    channels: int
    dilation: int
    target: str


def read(path: Path = PATH) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def parsed(row: dict[str, str]) -> tuple[Key, Tile]:
    key = Key(row["table"], row["stage"], row["kind"], int(row["channels"]), int(row["dilation"]), row["target"])
    height, width, inner, outer, warps, stages = (int(row[name]) for name in Tile._fields[:6])
    return key, Tile(height, width, inner, outer, warps, stages, limited=not key.target.startswith("gfx"))


@functools.cache
def table() -> dict[Key, Tile]:
    return dict(map(parsed, read()))


@functools.cache
def _architecture(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major = torch.cuda.get_device_capability(index)[0]
    # consumer Blackwell (12) has the registers and the products of Ampere, not those of sm_100
    return {8: "sm_80", 9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def target_of(device: torch.device) -> str:
    """The architecture that the tables know `device` by; "any" for the interpreter's."""
    return _architecture(device.index) if device.type == "cuda" else "any"


@functools.lru_cache(maxsize=4096)
def _chosen(name: str, stage: str, kind: str, channels: int, dilation: int, target: str) -> Key:
    found: dict[tuple[int, int], Key] = {}
    for key in table():
        if key[:3] == (name, stage, kind) and key.target in ("any", target):
            place = key.channels, key.dilation
            if place not in found or key.target == target:
                found[place] = key
    widths = sorted({width for width, _ in found})
    width = next((w for w in widths if w >= channels), widths[-1])
    least = [d for w, d in found if w == width]
    return found[width, max((d for d in least if d <= dilation), default=min(least))]


def choose(name: str, stage: str, kind: str | torch.dtype, x: Tensor, channels: int = 0, dilation: int = 1) -> Tile:
    """The tile for x's device: of the narrowest rows that hold `channels`, the one for the largest dilation there is
    up to `dilation`."""
    kind = width_class(kind) if isinstance(kind, torch.dtype) else kind
    target = target_of(x.device)
    tile = table()[_chosen(name, stage, kind, channels, dilation, target)]
    return tile._replace(limited=False) if target.startswith("gfx") else tile


def width_class(dtype: torch.dtype) -> str:
    """The kind of a row that depends on the bytes of an element alone."""
    return "single" if dtype == torch.float32 else "half"


def layout_class(x: Tensor) -> str:
    """The kind of a row that depends on the memory format alone."""
    return "nhwc" if suggest_memory_format(x) is torch.channels_last else "nchw"
