"""Padding of TensorFlow as timm computes it: the same numbers, and one short graph for sizes of the same remainder."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.compiler import same_padding
from liteseg_kernels.testing import trained_like
from tests.compiler.test_backend import assert_like_torch


def by_ceil(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Sizes' own definition, which Dynamo would trace as it is."""
    wanted = math.ceil(x / stride)
    return max((wanted - 1) * stride + (kernel_size - 1) * dilation + 1 - x, 0)


def test_numbers() -> None:
    for given in itertools.product(range(1, 40), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2)):
        size, *geometry = given
        assert same_padding.get_same_padding(*given) == by_ceil(*given)
        assert int(same_padding.get_same_padding(torch.tensor(size), *geometry)) == by_ceil(*given)


class Halved(nn.Module):
    """Strided convolutions one behind the other, padded on all sides by what their maps' sizes need."""

    def __init__(self, padding: Callable[..., int]) -> None:
        super().__init__()
        self.padding = padding
        self.steps = nn.ModuleList(nn.Conv2d(3 if step == 0 else 16, 16, 3 + 2 * (step % 2), 2) for step in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            kernel = step.kernel_size[0]
            high, wide = (self.padding(length, kernel, 2, 1) for length in x.shape[2:])
            x = step(tf.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))).relu()
        return x


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module under the name of timm's."""
    module = ModuleType("timm.layers.padding")
    module.get_same_padding = lambda x, kernel_size, stride, dilation: by_ceil(x, kernel_size, stride, dilation)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch._dynamo.reset()
    yield module
    torch._dynamo.reset()


@pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")
def test_a_graph_for_each_remainder(padding: ModuleType) -> None:
    net = trained_like(Halved(padding.get_same_padding))
    optimized = lk.optimize(net, rest="eager")
    for size in ((96, 160), (128, 64), (64, 128), (70, 101)):
        assert_like_torch(optimized, net, torch.randn(2, 3, *size))
    assert [len(report.taken) for report in optimized.reports] == [1, 1]
    # padding is a number, so it is in the convolutions
    assert {layer.layer for layer in optimized.reports[0].layers} == {
        "3x3 convolution + relu",
        "5x5 convolution + relu",
    }
    assert not any(report.left for report in optimized.reports)


def test_another_signature_is_left_alone(padding: ModuleType) -> None:
    padding.get_same_padding = lambda size, **geometry: 0  # type: ignore[attr-defined]
    same_padding.substitute()
    assert padding.get_same_padding in same_padding._SEEN
