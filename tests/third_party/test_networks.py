"""Other people's networks through `optimize`: as exact as torch at several sizes, with one graph for all of them.

Needs what requirements.txt in this folder lists; each test is skipped where its package is missing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like
from tests.compiler.test_graphs import error, layout

pytestmark = [
    pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded"),
    pytest.mark.slow,
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Logits(nn.Module):
    """A network that returns its logits in a structure."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, x: Tensor) -> Tensor:
        made = self.net(x)
        return made[self.name] if isinstance(made, dict) else getattr(made, self.name)


def package(name: str) -> Any:
    return pytest.importorskip(name, exc_type=ImportError)


def smp(architecture: str, encoder: str) -> nn.Module:
    kind = getattr(package("segmentation_models_pytorch"), architecture)
    return kind(encoder, encoder_weights=None, classes=19)


def timm(name: str) -> nn.Module:
    return package("timm").create_model(name, pretrained=False, num_classes=0, global_pool="")


def transformers() -> nn.Module:
    library = package("transformers")
    config = library.MobileNetV2Config(output_stride=16, num_labels=19)
    return Logits(library.MobileNetV2ForSemanticSegmentation(config), "logits")


def torchvision(name: str) -> nn.Module:
    models = package("torchvision.models.segmentation")
    return Logits(getattr(models, name)(weights=None, weights_backbone=None, num_classes=19), "out")


ENCODERS = ("mobilenet_v2", "timm-mobilenetv3_large_100", "efficientnet-b0")
NETWORKS: dict[str, Any] = {
    **{
        f"smp {architecture} {encoder}": (smp, architecture, encoder)
        for architecture in ("DeepLabV3Plus", "Unet", "FPN", "Linknet")
        for encoder in ENCODERS
    },
    **{
        f"timm {name}": (timm, name)
        for name in ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_lite0", "mobileone_s0")
    },
    "transformers MobileNetV2": (transformers,),
    **{
        f"torchvision {name}": (torchvision, name)
        for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_as_exact_as_torch(name: str) -> None:
    torch.manual_seed(0)
    build, *args = NETWORKS[name]
    net = trained_like(build(*args), torch.randn(2, 3, 96, 128))
    exact = copy.deepcopy(net).double()
    optimized = lk.optimize(net, rest="eager")
    for batch in (3, 1):
        before = len(optimized.reports)
        for size in ((128, 160), (160, 192), (128, 224)):
            x = torch.randn(batch, 3, *size)
            got = optimized(x)
            with torch.no_grad():
                eager, reference = net(x), exact(x.double())
            assert got.shape == eager.shape and layout(got) == layout(eager)
            assert error(got, reference) <= 3e-6 + 4 * error(eager, reference)
        assert len(optimized.reports) <= before + 1
    assert optimized.reports[0].taken, str(optimized.reports[0])
