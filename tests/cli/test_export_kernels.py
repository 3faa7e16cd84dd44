"""Exported files that call this library's ops: faster ones, which need it where they run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import liteseg
import liteseg_kernels as lk
from liteseg_kernels import _loader
from liteseg_kernels.testing import trained_like
from tests.build.project import ROOT

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")


class Blocks(nn.Module):
    """A network of this library's blocks that exports in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            lk.ConvNormAct(3, 8, 3, stride=2, activation="relu6"), lk.InvertedResidual(8, 12, 2, 3)
        )
        self.decoder = lk.SeparableConv2d(12, 16, activation="relu")
        self.classifier = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(self.decoder(self.encoder(x)))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)


@pytest.fixture(scope="module")
def model() -> Blocks:
    return trained_like(Blocks())


def test_every_op_of_a_network_has_a_kernel_of_its_own(tmp_path: Path) -> None:
    network = liteseg.create_model("liteseg_mobilenetv2", 5)
    done = liteseg.export(network, tmp_path / "net.pt2", "torch_export", kernels=True, size=(64, 96), check=False)
    assert done.ops == ("daspp", "inverted_residual", "separable_conv2d", "upsample_concat")


def test_a_torch_export_file_calls_the_ops(tmp_path: Path, model: Blocks) -> None:
    path = tmp_path / "net.pt2"
    done = liteseg.export(model, path, "torch_export", kernels=True, size=(64, 96))
    assert done.ops == ("inverted_residual", "separable_conv2d")
    assert done.milliseconds is not None and min(done.milliseconds) > 0
    assert all(check.passed for check in done.checks) and len(done.checks) == 2
    told = str(done)
    assert "needs liteseg_kernels" in told and "ms without these ops" in told
    # what it needs is in the file, and Python without the package says what is missing
    program = torch.export.load(path, extra_files=(extra := {"liteseg.json": ""}))
    assert "liteseg_register_ops" in json.loads(extra["liteseg.json"])["needs"]
    assert any("liteseg.separable_conv2d" in str(node.target) for node in program.graph.nodes)
    code = "import sys, torch; torch.export.load(sys.argv[1])"
    without = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert without.returncode != 0 and "liteseg" in without.stderr


def test_what_cannot_call_ops_is_refused(tmp_path: Path, model: Blocks) -> None:
    with pytest.raises(ValueError, match="kernels: expected the format torch_export or aoti, got onnx"):
        liteseg.export(model, tmp_path / "net.onnx", kernels=True)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(ValueError, match="kernels: expected a model with blocks of this library, got one without"):
        liteseg.export(plain, tmp_path / "net.pt2", "torch_export", kernels=True, size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_a_program_without_python_runs_a_package_that_calls_the_ops(tmp_path: Path, model: Blocks) -> None:
    path = tmp_path / "net.pt2"
    # compared below
    done = liteseg.export(model, path, "aoti", kernels=True, size=(64, 96), check=False)
    assert done.ops == ("inverted_residual", "separable_conv2d") and done.milliseconds is None
    with zipfile.ZipFile(path) as package:
        assert any(b"liteseg::separable_conv2d" in package.read(name) for name in package.namelist())
    torch_folder = Path(torch.__file__).parent
    program = tmp_path / "run_package"
    include = [f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include"]
    linked = [
        f"-L{torch_folder}/lib",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
        f"-Wl,-rpath,{torch_folder}/lib",
    ]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    source = str(ROOT / "tests/cli/run_package.cpp")
    subprocess.run(["g++", "-std=c++17", "-O0", abi, *include, source, *linked, "-o", str(program)], check=True)
    library = _loader.FOLDER / "_C.abi3.so"
    run = subprocess.run([str(program), str(library), str(path), str(tmp_path / "out")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    got = np.fromfile(tmp_path / "out", np.float32).reshape(1, 5, 96, 128)
    with torch.inference_mode():
        x = (torch.arange(3 * 96 * 128).remainder(17).float() / 8 - 1).view(1, 3, 96, 128)
        expected = model(x).numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
