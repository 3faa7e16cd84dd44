"""Network files for tests: small ones of every layer that a plan has, and where their parts lie."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import nn

import liteseg_kernels as lk
from liteseg.data import MEAN, STD
from liteseg_kernels.plan import PlannedModule
from liteseg_kernels.plan import file as plan_file
from liteseg_kernels.testing import trained_like
from tests.plan.test_bf16 import Tower
from tests.plan.test_dense import Dense, conv
from tests.plan.test_int8 import small
from tests.plan.test_large import Head
from tests.plan.test_shufflenet import Units


class ColourUnits(Units):
    """Units of pictures with three channels."""

    in_channels = 3

    def __init__(self, stride: int, channels: int, groups: int, dilation: int) -> None:
        super().__init__(stride, channels, groups, dilation)
        self.stem = lk.ConvNormAct(3, channels, 3, stride=stride, bias=True, activation="relu6")


NETWORKS = {
    "tower": lambda: Tower(3, 2, [(16, 2, 3, 1), (16, 1, 2, 2)]),
    "tower_without_skip": lambda: Tower(3, 1, [(9, 3, 1, 1)], concat=False),
    "head": lambda: Head(24, 8, (1, 2), last=True, deeper=True),
    "head_without_last": lambda: Head(17, 5, (3,), last=False, deeper=False),
    "units": lambda: ColourUnits(2, 12, 3, 1),
    "units_dilated": lambda: ColourUnits(1, 8, 2, 3),
    "int8": small,
    "dense": lambda: Dense(3, conv(3, 8), nn.MaxPool2d(2), conv(8, 24, 5, activation="relu6"), conv(24, 3, 1)),
    "winograd": lambda: Dense(3, conv(3, 33, 1), conv(33, 40), nn.MaxPool2d(2), conv(40, 3)),
    "winograd_of_many": lambda: Dense(3, conv(3, 256, 1), conv(256, 17, activation="relu")),
}


def fused(name: str) -> PlannedModule:
    torch.manual_seed(0)
    # what was drawn above stays where it is: trained-like by the name alone
    model = lk.fuse(trained_like(NETWORKS[name](), seed=len(name)))
    assert isinstance(model, PlannedModule)
    return model


def write(model: PlannedModule, path: Path, smallest_side: int = 8) -> Path:
    """The file of a fused network whose last layer says how many classes there are."""
    classes = lk.runtime.logits(model, torch.zeros(1, 3, 64, 64)).shape[1]
    plan_file.write(path, model.program(), plan_file.Description(classes, MEAN, STD, smallest_side=smallest_side))
    return path


def parts(data: bytes) -> tuple[int, int]:
    """Where the program begins, and where the weights' values do, by csrc/engine/c_api/network_file.h."""
    at = 24

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return int(value)

    def skip(count: int) -> None:
        nonlocal at
        at += count

    skip(number("I"))
    classes, named = number("I"), number("I")
    for _ in range(classes * named):
        skip(number("I"))
    skip(8 + 4)
    skip(16 * number("I"))
    words = at
    skip(8 * number("Q"))
    skip(40 * number("Q"))
    return words, at
