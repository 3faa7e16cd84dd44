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
from liteseg_kernels.compiler import backend
from liteseg_kernels.testing import trained_like
from tests.compiler.test_graphs import error, layout
from tests.third_party.beside_cpu_torch import torchvision_imports

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
    torchvision_imports()
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


# of one area: torch chooses its convolutions by whether an image has more than 20480 values, and guards that
SIZES = ((160, 192), (192, 160), (96, 320))


def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    build, *args = NETWORKS[name]
    return trained_like(build(*args), torch.randn(2, 3, 96, 128))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_as_exact_as_torch(name: str) -> None:
    net = trained(name)
    exact = copy.deepcopy(net).double()
    # several images by a module, one by torch's own way
    module = lk.optimize(net, rest="eager")
    backend.REPORTS.clear()
    compiled = torch.compile(net, backend="liteseg", dynamic=True, options={"rest": "eager"})
    for batch, call, reports in ((3, module, module.reports), (1, compiled, backend.REPORTS)):
        for size in SIZES:
            x = torch.randn(batch, 3, *size)
            got, eager, reference = call(x), net(x), exact(x.double())
            assert got.shape == eager.shape and layout(got) == layout(eager)
            assert error(got, reference) <= 3e-6 + 4 * error(eager, reference)
        (report,) = reports
        assert report.taken, str(report)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_bfloat16_is_torchs(name: str) -> None:
    net = trained(name).bfloat16()
    compiled = torch.compile(net, backend="liteseg", dynamic=True, options={"rest": "eager"})
    for batch in (3, 1):
        x = torch.randn(batch, 3, *SIZES[0]).bfloat16()
        assert torch.equal(compiled(x), net(x))
    assert not backend.REPORTS[-1].taken and "bfloat16" in str(backend.REPORTS[-1])
