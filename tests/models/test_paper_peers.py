"""SegNet, the SkipNets, CCC2 and DSNet: known counts, structure, ONNX, and the behaviour of every model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import liteseg
import liteseg_kernels as lk
from liteseg.models import CCC2, Network, PeerConfig, SegNet, SkipNetShuffleNet
from liteseg.models.peers.skip import bilinear_
from liteseg_kernels.testing import trained_like
from tests.models.base import CLASSES
from tests.models.test_peers import PeerTester, count

NAMES = ("segnet", "skipnet_mobilenet", "skipnet_shufflenet", "ccc2", "dsnet")


class UnpaddedPeerTester(PeerTester):
    @torch.no_grad()
    def test_padding(self, model: Network) -> None:
        x = torch.randn(1, 3, 45, 82)
        assert torch.equal(model(x), model.logits(x))


class TestSegNet(UnpaddedPeerTester):
    name = "segnet"


class TestSkipNetMobileNet(UnpaddedPeerTester):
    name = "skipnet_mobilenet"


class TestSkipNetShuffleNet(UnpaddedPeerTester):
    name = "skipnet_shufflenet"


class TestCCC2(PeerTester):
    name = "ccc2"
    few_classes = 4


class TestDSNet(PeerTester):
    name = "dsnet"
