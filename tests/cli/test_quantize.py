"""Post-training quantisation: of a network in Python and by the command line, kept in weights files, and refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
import liteseg_kernels as lk
from liteseg.models.int8 import int8_blocks
from liteseg_kernels import _loader
from liteseg_kernels.int8 import Int8InvertedResidual
from tests.instruction_sets.order import BF16, HERE

from .conftest import picture

pytestmark = pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")

LIMIT = 0.3
PICTURES = [picture(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def quantised(model) -> torch.nn.Module:
    return liteseg.quantize(model, PICTURES)


def normalised(count: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.stack(PICTURES[:count])).permute(0, 3, 1, 2).float() / 60 - 2


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_nearly_the_float_network(model, quantised) -> None:
    assert len(int8_blocks(quantised)) == 19 and not int8_blocks(model)
    x = normalised(2)
    with torch.inference_mode():
        expected, found = lk.fuse(model)(x), quantised(x)
        # of a network that is not trained, on noise; a block dropped or scaled wrongly gives 0.6 and more
        assert 0 < error(found, expected) < LIMIT
        # module by module floats round elsewhere and move some bytes by one
        low = quantised.low_resolution_logits(x)
        assert error(quantised.forward_modules(x), low) < 0.05


@pytest.mark.parametrize("output_stride", [16, 8])
def test_with_dilations(output_stride: int, model) -> None:
    dense = liteseg.create_model("liteseg_mobilenetv2", 11, output_stride=output_stride)
    dense.load_state_dict(model.state_dict())
    fast = liteseg.quantize(dense, PICTURES)
    with torch.inference_mode():
        assert lk.runtime.explain(fast, normalised()).plan is not None
        assert error(fast(normalised(2)), lk.fuse(dense)(normalised(2))) < LIMIT
        assert error(fast.forward_modules(normalised()), fast.low_resolution_logits(normalised())) < 0.05


@pytest.mark.parametrize("ranges", ["mse", "percentile", "minmax"])
def test_ranges(model, ranges: str) -> None:
    x = normalised()
    with torch.inference_mode():
        fast = liteseg.quantize(model, PICTURES[:2], ranges=ranges, bias_correction=False)
        assert error(fast(x), lk.fuse(model)(x)) < 1.5 * LIMIT


def test_blocks_that_are_kept(model) -> None:
    fast = liteseg.quantize(model, [normalised(2)], keep=["backbone.blocks.3", "backbone.blocks.16"])
    assert len(int8_blocks(fast)) == 16
    with torch.inference_mode():
        assert error(fast(normalised()), lk.fuse(model)(normalised())) < LIMIT
        layers = lk.explain(fast, normalised()).layers[""].layers
    strategies = {layer.name: layer.strategy for layer in layers}
    assert "int8" in strategies["blocks.2"] and "int8" not in strategies["blocks.3"]


def test_explained_layer_by_layer(quantised) -> None:
    with torch.inference_mode():
        told = lk.explain(quantised, normalised())
    assert told.plan == ("",) and len(told.int8) == 19
    assert sum(layer.strategy.startswith("int8") for layer in told.layers[""].layers) >= 19
    assert "19 in int8 by kernels of bytes" in str(told)
    # with gradients no plan runs, and it says so
    assert "slow reference" in str(lk.explain(quantised, normalised()))


def test_weights_files_keep_it(quantised, tmp_path: Path) -> None:
    with torch.inference_mode():
        expected = quantised(normalised())
        for dtype in (None, torch.float16):
            liteseg.save_weights(quantised, tmp_path / "int8.safetensors", dtype=dtype)
            again = liteseg.create_model(weights=tmp_path / "int8.safetensors").eval()
            for name in int8_blocks(quantised):
                own, read = (net.get_submodule(name).state_dict() for net in (quantised, again))
                assert all(torch.equal(own[key], read[key]) and own[key].dtype == read[key].dtype for key in own)
            if dtype is None:
                assert torch.equal(lk.fuse(again)(normalised()), expected)
    with pytest.raises(ValueError, match="weights_mode: expected 'all' for weights in int8"):
        liteseg.create_model(weights=tmp_path / "int8.safetensors", weights_mode="backbone")
    with pytest.raises(ValueError, match="keys do not match the model"):
        liteseg.load_weights(liteseg.create_model("liteseg_mobilenetv2", 11), tmp_path / "int8.safetensors")


def test_conversions_leave_scales_alone(quantised) -> None:
    import copy
    import pickle

    block = quantised.get_submodule(int8_blocks(quantised)[0])
    before = {key: value.clone() for key, value in block.state_dict().items()}
    for changed in (
        copy.deepcopy(block).bfloat16().float(),
        copy.deepcopy(block).half(),
        pickle.loads(pickle.dumps(block)),
    ):
        after = changed.state_dict()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


@pytest.mark.skipif(HERE not in BF16, reason=f"needs products of bfloat16, and the kernels use {HERE}")
def test_with_bfloat16_around(model, quantised) -> None:
    import copy

    with torch.inference_mode():
        exact = lk.fuse(model)(normalised())
        half = copy.deepcopy(quantised).bfloat16()
        found = half(normalised().bfloat16())
        assert lk.runtime.explain(half, normalised().bfloat16()).plan is not None
        assert found.dtype == torch.bfloat16 and error(found, exact) < LIMIT
        labels = lk.runtime.labels(half, normalised().bfloat16(), exact.shape[2:])
        assert (labels == exact.argmax(1)).float().mean() > 0.7
        # bytes in front of a block in bfloat16
        kept = liteseg.quantize(model, PICTURES, keep=["backbone.blocks.3"]).bfloat16()
        assert error(kept(normalised().bfloat16()), exact) < LIMIT
        # what is rounded elsewhere moves bytes, so that the two are as far from each other as from the float network
        with torch.autocast("cpu", torch.bfloat16):
            assert error(quantised(normalised()), exact) < LIMIT


def test_what_is_refused(model, quantised) -> None:
    block = quantised.get_submodule(int8_blocks(quantised)[0])
    x = torch.zeros(1, block.in_channels, 4, 4)
    with pytest.raises(RuntimeError, match="expected eval mode, got training mode"):
        block.train()(x)
    block.eval()
    for wrong, message in ((x.half(), "float16"), (x.double(), "float64"), (x[:, :1], r"\[N, 16, H, W\]")):
        with pytest.raises((TypeError, ValueError), match=f"Int8InvertedResidual: x: expected.*{message}"):
            block(wrong)
    for call, message in (
        (lambda: liteseg.quantize(torch.nn.Conv2d(1, 1, 1), PICTURES), "quantize: model: expected a network"),
        (lambda: liteseg.quantize(quantised, PICTURES), "got one with blocks in int8"),
        (lambda: liteseg.quantize(model, []), "quantize: images: expected at least one"),
        (lambda: liteseg.quantize(model, PICTURES, ranges="best"), "quantize: ranges: expected one of mse"),
        (lambda: liteseg.quantize(model, PICTURES, keep=["stem"]), "quantize: keep: expected names of blocks"),
        (lambda: liteseg.quantize(liteseg.create_model("liteseg_shufflenet"), PICTURES), "no inverted residual"),
        (lambda: liteseg.quantize(lk.fuse(model).bfloat16(), PICTURES), "expected float32 weights on the CPU"),
        (lambda: liteseg.quantize(model, [torch.full((1, 3, 64, 64), float("nan"))]), "expected finite values"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()


def test_command(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from liteseg.cli import main

    folder, out = tmp_path / "pictures", tmp_path / "int8.safetensors"
    labels = tmp_path / "data"
    for sub in ("test", "testannot"):
        (labels / sub).mkdir(parents=True)
    folder.mkdir()
    for seed, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        Image.fromarray(pixels).save(labels / "test" / f"{seed}.png")
        Image.fromarray((pixels[..., 0] // 26).astype(np.uint8)).save(labels / "testannot" / f"{seed}.png")
    common = ["quantize", "--weights", weights, "--out", str(out), "--images", str(folder), "--quiet"]
    measured = ["--data", str(labels), "--dataset", "camvid", "--split", "test"]
    assert main([*common, "--count", "3", "--keep", "backbone.blocks.1", *measured]) == 0
    told = capsys.readouterr().out
    assert "17 blocks in int8, 3 pictures seen" in told and "labels equal" in told
    found = re.search(r"mean IoU ([\d.]+) in float, ([\d.]+) in int8, ([+-][\d.]+), 4 images", told)
    assert found and abs(float(found[2]) - float(found[1]) - float(found[3])) < 0.011
    assert int8_blocks(liteseg.create_model(weights=out))[:2] == ["backbone.blocks.2", "backbone.blocks.3"]
    for arguments, message in (
        (["export", "--weights", str(out), "--format", "onnx", "--out", str(tmp_path / "x.onnx")], "blocks in int8"),
        ([*common[:4], "--images", str(tmp_path / "none")], "--out"),
        (
            ["quantize", "--weights", str(out), "--out", str(out), "--images", str(folder)],
            "got one with blocks in int8",
        ),
        ([*common[:3], "--out", "x.pth", "--images", str(folder)], "--out: expected a name ending in .safetensors"),
        ([*common[:3], "--out", str(out), "--images", str(labels)], "--images: expected a folder with pictures"),
        ([*common, "--ranges", "best"], "--ranges: expected one of mse, percentile, minmax, got 'best'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_network_file(quantised, tmp_path: Path) -> None:
    done = liteseg.export(quantised, tmp_path / "int8.liteseg", "plan")
    assert all(check.passed for check in done.checks)
    assert any(isinstance(part, Int8InvertedResidual) for part in quantised.modules())
