"""Labels of real street scenes: the fused networks against the plain ones, over CamVid test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
import liteseg_kernels as lk
from tests.plan.test_plan import network

IMAGES = {"mobilenetv2": 24, "shufflenet": 24, "darknet19": 6}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", IMAGES)
def test_labels_of_camvid(backbone: str, shared: Path) -> None:
    files = sorted((shared / "data" / "camvid" / "test").glob("*.jpg"))
    if not files:
        pytest.skip("no CamVid images")
    if backbone == "mobilenetv2":
        model = liteseg.create_model(weights="camvid_mobilenetv2").eval()
    else:
        # no weights of these come with the package
        model = network(backbone)
    fused, plain = lk.fuse(model), lk.to_reference(model)
    pixels = equal = 0
    with torch.inference_mode():
        for file in files[:: len(files) // IMAGES[backbone]][: IMAGES[backbone]]:
            image = np.asarray(Image.open(file).convert("RGB"))
            same = liteseg.predict(fused, image) == liteseg.predict(plain, image)
            pixels += same.size
            equal += int(same.sum())
    print(f"{backbone}: {equal} of {pixels} labels equal")
    assert equal >= 0.9999 * pixels
