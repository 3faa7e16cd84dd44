"""How many kernels a fused network launches for one image, counted without a GPU.

Our kernels run in the emulator, which counts its launches. What torch does itself (the stem and the last convolution of
the encoder, with their activations) is counted by operator, one launch each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import use_backend
from liteseg_kernels.testing import trained_like
from tests.emulator import build

# views, allocations and metadata
FREE = {"detach", "empty", "view", "permute", "transpose", "expand", "slice", "as_strided", "_unsafe_view", "alias"}


class TorchLaunches(TorchDispatchMode):
    """Counts torch's own operators that would launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("aten::") and name.removeprefix("aten::").rstrip("_") not in FREE:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


# Per network our launches, and torch's: the encoders' dense convolutions with what follows them. Preprocessing is one
# more, so that MobileNetV2 takes 27 from picture to labels, and ShuffleNet 25.
LAUNCHES = {
    # 17 blocks, 2 of the pyramid, 2 of the decoder with its classifier, the labels
    "liteseg_mobilenetv2": (22, {"aten::conv2d": 2, "aten::hardtanh": 2}),
    # 16 units, one more separable convolution in the decoder
    "liteseg_shufflenet": (22, {"aten::conv2d": 1, "aten::max_pool2d": 1}),
    "liteseg_darknet19": (6, {"aten::conv2d": 18, "aten::leaky_relu": 18, "aten::max_pool2d": 4}),
}


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_launches_from_input_to_labels(name: str, dtype: torch.dtype) -> None:
    if reason := build.load():
        pytest.skip(reason)
    model = liteseg.fuse(trained_like(liteseg.create_model(name, num_classes=19), torch.randn(2, 3, 64, 96))).to(dtype)
    x = torch.randn(1, 3, 64, 96).to(dtype).contiguous(memory_format=torch.channels_last)
    build.controls().reset_counters()
    with torch.inference_mode(), use_backend("cuda", strict=True), TorchLaunches() as torchs:
        labels = lk.runtime.labels(model, x, (64, 96))
    ours = build.controls().counters()["launches"]
    assert labels.shape == (1, 64, 96)
    assert (ours, torchs.counted) == LAUNCHES[name]
    with torch.inference_mode(), use_backend("reference"):
        expected = lk.runtime.labels(model.float(), x.float(), (64, 96))
    assert (labels == expected).float().mean() > 0.97
