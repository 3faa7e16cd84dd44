"""A small network with varied output, its weights on disk, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
from liteseg.cli import main
from liteseg.data import CAMVID_CLASSES

SIZE = (64, 96)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Coloured blocks with noise on them: structure, so that the labels vary."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-size[0] // 16), -(-size[1] // 16), 3))
    pixels = np.kron(blocks, np.ones((16, 16, 1), int))[: size[0], : size[1]]
    return np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)


def varied(model: torch.nn.Module) -> torch.nn.Module:
    """Gives a fresh network batch statistics of real activations; without them its output is all one class."""
    torch.manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    images = np.stack([picture(seed) for seed in range(8)])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        model(x)
        logits = model.eval()(x)
        # no class may win everywhere
        model.classifier.bias -= logits.mean((0, 2, 3))
    return model


@pytest.fixture(scope="session")
def model() -> liteseg.models.LiteSeg:
    torch.manual_seed(0)
    return varied(liteseg.create_model("liteseg_mobilenetv2", num_classes=11, class_names=CAMVID_CLASSES))


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    liteseg.save_weights(model, path)
    return str(path)


@pytest.fixture(scope="session")
def cityscapes_weights(tmp_path_factory) -> str:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "cityscapes.safetensors"
    liteseg.save_weights(varied(liteseg.create_model("liteseg_mobilenetv2", num_classes=19)), path)
    return str(path)


@pytest.fixture
def image_file(tmp_path: Path) -> Callable[..., Path]:
    """Makes a picture file below tmp_path."""

    def make(name: str, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, size)).save(path)
        return path

    return make


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """Runs a command line that must end with exit code 2 and one line; gives the line back."""

    def call(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 2, err
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("liteseg: error: "), err
        assert out == ""
        return lines[0]

    return call
