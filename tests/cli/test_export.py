"""Exported files: what they hold, that they compute what the model computes, and that wrong ones do not stay."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import liteseg
from liteseg.data import CAMVID_CLASSES, MEAN, STD
from liteseg.errors import MissingExtraError
from liteseg.export import Check

from .conftest import varied


class Small(nn.Module):
    """A network of two convolutions that exports in a second or two."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(self.encoder(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)


class Shifted(Small):
    """Exports something else than it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits + 0.01 if torch.compiler.is_exporting() else logits


class Mirrored(Small):
    """Exports a network whose labels differ."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return -logits if torch.compiler.is_exporting() else logits


class Cut(Small):
    """Exports another number of classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits[:, :2] if torch.compiler.is_exporting() else logits


class Multiple(Small):
    """Decides by the size of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.shape[2] % 8 == 0 else 2 * super().forward(x)


@pytest.fixture
def onnxruntime():
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    return pytest.importorskip("onnxruntime")


def expected(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(x)


def assert_logits(got: torch.Tensor, model: nn.Module, x: torch.Tensor) -> None:
    logits = expected(model, x)
    assert got.dtype == torch.float32 and got.shape == logits.shape
    assert (got - logits).abs().max() <= 1e-4 * logits.abs().max()


def assert_facts(facts: dict[str, str]) -> None:
    assert json.loads(facts["class_names"]) == list(CAMVID_CLASSES)
    assert json.loads(facts["mean"]) == list(MEAN) and json.loads(facts["std"]) == list(STD)
    assert float(facts["input_scale"]) == 1.0
    assert int(facts["minimum_size"]) == 64
    assert facts["model"] == "liteseg_mobilenetv2" and int(facts["num_classes"]) == 11
    assert facts["output"] == "logits: float32 [N, 11, H, W]"


def test_onnx_file_of_the_command_line(onnxruntime, run, model, weights, tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    code, out, err = run("export", "--weights", weights, "--format", "onnx", "--out", path, "--size", "96x128")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"{path}: onnx, image [batch, 3, height, width] -> logits"
    assert [line.split(", ")[1].split(":")[0] for line in lines[1:]] == ["2x3x225x353", "1x3x334x250"]
    assert all(line.startswith("checked with ONNX Runtime ") and "largest logit error" in line for line in lines[1:])
    assert list(tmp_path.iterdir()) == [path]

    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == 18
    assert_facts({entry.key: entry.value for entry in proto.metadata_props})
    resized = [node for node in proto.graph.node if node.op_type == "Resize"]
    modes = [a.s for node in resized for a in node.attribute if a.name == "coordinate_transformation_mode"]
    assert modes == [b"align_corners"] * 2

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 11, "height", "width"])
    for shape in ((3, 3, 64, 131), (1, 3, 160, 96)):
        x = torch.randn(shape)
        assert_logits(torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), model, x)


def onnx_runners(path: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Who can run an ONNX file here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    runners: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ONNX Runtime": lambda x: session.run(None, {"image": x})[0]
    }
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        # its own choice may be bfloat16
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        runners["OpenVINO"] = lambda x: compiled(x)[0]
    return runners


@pytest.mark.parametrize("name", ["liteseg_mobilenetv2", "liteseg_shufflenet", "liteseg_darknet19"])
def test_onnx_files_of_the_three_networks(name, onnxruntime, record_property, tmp_path):
    model = varied(liteseg.create_model(name, num_classes=11))
    path = tmp_path / "model.onnx"
    liteseg.export(model, path, size=(96, 128), check=False)
    for runner, run in onnx_runners(path).items():
        # odd, and no multiple of the output stride
        for shape in ((1, 3, 96, 160), (2, 3, 77, 131)):
            x = torch.randn(shape)
            logits = expected(model, x)
            got = torch.from_numpy(run(x.numpy()))
            assert got.shape == logits.shape
            error = ((got - logits).abs().max() / logits.abs().max()).item()
            record_property(f"largest error of a logit, {runner}, {shape}", error)
            assert error <= 1e-4, f"{runner} at {shape}: off by {error:.1e} of the largest logit"
            assert (got.argmax(1) == logits.argmax(1)).double().mean() >= 0.9999


def test_torch_export_file_of_a_fused_model(model, weights, tmp_path):
    path = tmp_path / "model.pt2"
    fused = liteseg.fuse(model)
    done = liteseg.export(fused, path, "torch_export")
    assert done.path == path and done.shape == ("batch", 3, "height", "width")
    assert [check.shape for check in done.checks] == [(2, 3, 225, 353), (1, 3, 334, 250)]
    assert all(0 < check.error <= check.limit and check.equal >= 0.9999 for check in done.checks)
    # the weights, not the pictures of the trace
    assert path.stat().st_size < 1.3 * Path(weights).stat().st_size

    facts = {"liteseg.json": ""}
    program = torch.export.load(path, extra_files=facts)
    assert_facts(json.loads(facts["liteseg.json"]))
    # plain operations only, nothing that needs this package
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in", "sym_")) for name in names), names
    for shape in ((3, 3, 64, 131), (1, 3, 160, 96)):
        x = torch.randn(shape)
        with torch.inference_mode():
            assert_logits(program.module()(x), model, x)


@pytest.mark.slow
def test_aoti_file(model, tmp_path):
    path = tmp_path / "model.pt2"
    liteseg.export(model, path, "aoti", size=(96, 128))
    package = torch._inductor.aoti_load_package(str(path))
    assert_facts(package.get_metadata())
    for shape in ((3, 3, 64, 131), (1, 3, 160, 96)):
        x = torch.randn(shape)
        assert_logits(package(x), model, x)


def test_onnx_labels_at_any_size(onnxruntime, tmp_path):
    path, model = tmp_path / "labels.onnx", Small()
    done = liteseg.export(model, path, output="labels")
    assert all(check.error is None and check.equal >= 0.9999 for check in done.checks)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (labels,) = session.get_outputs()
    assert (labels.name, labels.type, labels.shape) == ("labels", "tensor(uint8)", ["batch", "height", "width"])
    x = torch.randn(2, 3, 77, 140)
    got = session.run(None, {"image": x.numpy()})[0]
    assert np.mean(got == expected(model, x).argmax(1).numpy()) > 0.9999
    assert len(np.unique(got)) > 1


def test_fixed_size_and_opset(onnxruntime, tmp_path):
    import onnx

    path, model = tmp_path / "fixed.onnx", Small()
    done = liteseg.export(model, path, size=(40, 56), fixed_size=True, opset=20)
    assert done.shape == (1, 3, 40, 56) == done.checks[0].shape == done.checks[1].shape
    proto = onnx.load(path)
    assert proto.opset_import[0].version == 20
    assert "minimum_size" not in {entry.key for entry in proto.metadata_props}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 40, 56]
    x = torch.randn(1, 3, 40, 56)
    assert_logits(torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), model, x)


def test_the_traced_size_is_not_checked(tmp_path):
    done = liteseg.export(Small(), tmp_path / "model.pt2", "torch_export", size=(225, 353))
    assert [check.shape[2:] for check in done.checks] == [(334, 250), (193, 289)]


def test_batch_norm_is_in_eval_mode_and_the_model_is_left_as_it_is(tmp_path):
    model = Small().train()
    model.encoder[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    liteseg.export(model, tmp_path / "model.pt2", "torch_export")
    assert model.training and model.encoder[1].training and not model.encoder[0].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = torch.randn(2, 3, 80, 72)
    assert_logits(torch.export.load(tmp_path / "model.pt2").module()(x).detach(), model, x)


@pytest.mark.parametrize(("model", "output"), [(Shifted(), "logits"), (Mirrored(), "labels")])
def test_a_file_that_differs_is_not_left(model, output, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"the export before")
    with pytest.raises(RuntimeError, match=r"differs from the model and was removed: .* at 2x3x225x353: "):
        liteseg.export(model, path, "torch_export", output=output)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the export before"
    done = liteseg.export(model, path, "torch_export", output=output, check=False)
    assert done.checks == () and str(done).endswith("\nnot checked")
    torch.export.load(path)


def test_a_file_of_another_shape_is_not_left(tmp_path):
    with pytest.raises(RuntimeError, match=r"does not run and was removed: expected an output \[2, 5, 225, 353\]"):
        liteseg.export(Cut(), tmp_path / "model.pt2", "torch_export")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_needs_a_fixed_size(tmp_path):
    path = tmp_path / "model.pt2"
    with pytest.raises(ValueError, match=r"can trace for any size; a fixed size \(.*--fixed-size\) may work \(.+\)"):
        liteseg.export(Multiple(), path, "torch_export")
    assert list(tmp_path.iterdir()) == []
    assert liteseg.export(Multiple(), path, "torch_export", size=(68, 64), fixed_size=True).checks[1].passed


def test_an_onnx_file_that_differs_is_not_left(onnxruntime, tmp_path):
    with pytest.raises(RuntimeError, match="the onnx file differs from the model"):
        liteseg.export(Shifted(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (Check((1, 3, 64, 64), 0.99991, 1e-5, 1e-4), True),
        (Check((1, 3, 64, 64), 0.9998, 1e-5, 1e-4), False),
        (Check((1, 3, 64, 64), 1.0, 2e-4, 1e-4), False),
        (Check((1, 3, 64, 64), 1.0, float("nan"), 1e-4), False),
        (Check((1, 3, 64, 64), 0.9999), True),
        (Check((1, 3, 64, 64), 0.9902, 1e-5, 1e-4, share=0.99), True),
        (Check((1, 3, 64, 64), 0.9897, 1e-5, 1e-4, share=0.99), False),
        (Check((1, 3, 64, 64), 0.9998), False),
    ],
)
def test_limits_of_the_check(check, passed):
    assert check.passed is passed


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(module, refused, weights, monkeypatch, tmp_path):
    for name in {"onnx", "onnxscript", "onnxruntime"} - {module}:
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert f'needs the package "{module}": pip install "liteseg[export]"' in line
    assert ("--no-check" in line) == (module == "onnxruntime")
    assert list(tmp_path.iterdir()) == []


def test_unchecked_onnx_needs_no_onnxruntime(onnxruntime, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError):
        liteseg.export(Small(), tmp_path / "model.onnx")
    done = liteseg.export(Small(), tmp_path / "model.onnx", check=False)
    assert done.runner is None and done.path.is_file()


def test_aoti_without_a_compiler(refused, weights, tmp_path):
    import torch._inductor.config

    # not monkeypatch, which takes the setting away for good when it puts it back
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        line = refused("export", "--weights", weights, "--format", "aoti", "--out", tmp_path / "model.pt2")
    assert "aoti: expected a C++ compiler" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format", "tflite"], "--format: expected one of onnx, torch_export, aoti, plan, got 'tflite'"),
        (["--output", "overlay"], "--output: expected one of logits, labels, got 'overlay'"),
        (["--out", "model.pt"], "--out: expected a name ending in .onnx for onnx, got 'model.pt'"),
        (["--out", "nowhere/model.onnx"], "--out: expected a folder that exists, got 'nowhere'"),
        (["--size", "31x512"], "--size: expected height and width of at least 32, got 31x512"),
        (["--size", "64x63"], "--size: expected height and width of at least 64 for a file that takes any size"),
        (["--size", "31x64", "--fixed-size"], "--size: expected height and width of at least 32, got 31x64"),
        (["--size", "large"], "--size: expected HEIGHTxWIDTH"),
        (["--opset", "17"], "--opset: expected 18 to 23, got 17"),
    ],
)
def test_bad_arguments(arguments, text, refused, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # what comes later wins
    line = refused("export", "--weights", weights, "--format", "onnx", "--out", "model.onnx", *arguments)
    assert text in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way(refused, weights, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    line = refused("export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert "--out: expected a file, got the folder" in line


def damaged() -> nn.Module:
    model = Small()
    nn.init.constant_(model.classifier.bias, float("nan"))
    return model


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (Small().half(), TypeError, "export: model: expected float32 parameters, got torch.float16"),
        (nn.Conv2d(3, 5, 1, stride=2), TypeError, r"expected logits \[1, K, 64, 64\], got \[1, 5, 32, 32\]"),
        (damaged(), ValueError, "expected finite logits, got NaN or infinity"),
        (Small(257), ValueError, "more than 256 classes, got labels and 257 classes"),
    ],
)
def test_models_that_cannot_be_exported(model, error, text, tmp_path):
    with pytest.raises(error, match=text):
        liteseg.export(model, tmp_path / "model.pt2", "torch_export", output="labels")
    assert list(tmp_path.iterdir()) == []
