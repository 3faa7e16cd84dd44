"""SegNet, the SkipNets, CCC2 and DSNet: known counts, structure, ONNX, and the behaviour of every model."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import liteseg
from liteseg.data import MEAN, STD
from liteseg.models import CCC2, DSNet, Network, SegNet, SkipNetMobileNet, SkipNetShuffleNet
from liteseg.models.peers.skip import Upsample
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
    learning_steps = 8
    half_limits = (0.3, 0.6)
    # one moved maximum of its five unpoolings changed more than a fifth of a 40x56 picture's logits, by 1 % and more
    compared = 0.5


class TestSkipNetMobileNet(UnpaddedPeerTester):
    name = "skipnet_mobilenet"
    learning_steps = 5


class TestSkipNetShuffleNet(UnpaddedPeerTester):
    name = "skipnet_shufflenet"
    learning_steps = 5


class TestCCC2(PeerTester):
    name = "ccc2"
    few_classes = 4
    learning_rate = 0.5
    learning_steps = 12


class TestDSNet(PeerTester):
    name = "dsnet"
    half_limits = (0.4, 0.8)
    compared = 0.9
    # some fifty convolutions without a sum that would pass by them
    rounding = 20.0


@pytest.fixture(scope="module")
def models() -> dict[str, Network]:
    """Shared: tests must not change them."""
    made = {}
    for name in NAMES:
        torch.manual_seed(0)
        made[name] = trained_like(liteseg.create_model(name, CLASSES), torch.randn(2, 3, 64, 96))
    return made


@pytest.mark.parametrize(
    ("name", "parameters", "size", "gmacs", "published"),
    [
        # ENet's paper: 286.03 GFLOPs at 360x640
        ("segnet", 29_454_548, (360, 640), 143.48, 286.03),
        # RTSeg's repository: 6.2 and 2.0 GFLOPs at 360x640; the paper's Table IV: 13.8 and 4.63, at 512x1024
        ("skipnet_mobilenet", 3_358_216, (360, 640), 3.07, 6.2),
        ("skipnet_mobilenet", 3_358_216, (512, 1024), 6.86, 13.8),
        ("skipnet_shufflenet", 1_014_602, (360, 640), 1.00, 2.0),
        ("skipnet_shufflenet", 1_014_602, (512, 1024), 2.24, 4.63),
        # the parameters are those of the authors' log of the training with these dilations
        ("ccc2", 191_614, (512, 1024), 3.05, 6.29),
        # 0.91 M parameters are published, no operations
        ("dsnet", 910_613, (512, 1024), 9.73, None),
    ],
)
def test_published_counts(
    name: str, parameters: int, size: tuple[int, int], gmacs: float, published: float | None
) -> None:
    with torch.device("meta"):
        model = liteseg.create_model(name, num_classes=20)
    assert count(model) == parameters
    profile = liteseg.profile(model, size)
    assert profile.params == parameters
    assert round(profile.macs / 1e9, 2) == gmacs
    assert sum(profile.part(part).macs for part in ("encoder", "decoder")) == profile.macs
    assert {row.block for row in profile.rows} == set(profile.blocks)
    if published is not None:
        # what remains is in the notes of Table IV
        assert 2 * profile.macs / 1e9 == pytest.approx(published, rel=0.035)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_onnx_file_gives_the_models_logits(name: str, models: dict[str, Network], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = models[name], tmp_path / "network.onnx"
    # with random weights DSNet's rounding errors are beyond what the check of `export` allows
    liteseg.export(model, path, size=(64, 96), fixed_size=True, check=name != "dsnet")
    x = torch.randn(1, 3, 64, 96)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    written = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    exact = copy.deepcopy(model).double().to_reference()(x.double())

    def error(logits: torch.Tensor) -> float:
        # without the surroundings of maxima that rounding moves
        errors = (logits - exact).abs().flatten()
        return (errors.kthvalue(int(0.9 * errors.numel())).values / exact.abs().max()).item()

    assert error(written) < max(3 * error(model.to_reference()(x)), 1e-6)
    assert (written.argmax(1) == exact.argmax(1)).double().mean() > 0.99


def test_predicts_pictures(models: dict[str, Network]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    x = torch.from_numpy((picture / 255 - MEAN) / STD).permute(2, 0, 1)[None].float()
    for model in models.values():
        with torch.no_grad():
            expected = model(x).argmax(1)[0].numpy()
        assert len(np.unique(expected)) > 1
        labels = liteseg.predict(liteseg.fuse(model), picture)
        assert labels.shape == (40, 53) and labels.dtype == np.uint8
        # rounding may turn a tie, or move a maximum
        assert (labels == expected).mean() > 0.98


@torch.no_grad()
def test_segnet_rounds_up_and_unpools_where_the_maxima_were(models: dict[str, Network]) -> None:
    model = models["segnet"]
    assert isinstance(model, SegNet)
    encoded, pooled = model.encoder(torch.randn(1, 3, 45, 80))
    assert [tuple(size) for _, size in pooled] == [(45, 80), (23, 40), (12, 20), (6, 10), (3, 5)]
    assert encoded.shape == (1, 512, 2, 3)
    seen: list[torch.Tensor] = []
    last = model.decoder.stages[0]
    handle = last.unpool.register_forward_hook(lambda module, args, output: seen.append(output))
    model.decoder(encoded, pooled)
    handle.remove()
    indices, _ = pooled[-1]
    assert torch.equal(seen[0].flatten(2).gather(2, indices.flatten(2)), encoded.flatten(2))
    # ReLU's maxima are not negative; nothing else is filled
    assert torch.isclose(seen[0].sum(), encoded.sum())


def test_skip_decoder_starts_as_bilinear_interpolation() -> None:
    for factor in (2, 8):
        up = Upsample(3, factor, bias=False)
        x = torch.randn(1, 3, 6, 7)
        got = up(x, torch.Size((6 * factor - 1, 7 * factor)))
        expected = F.interpolate(x, scale_factor=factor, mode="bilinear")
        assert got.shape[2:] == (6 * factor - 1, 7 * factor)
        # beyond the middles of the outer pixels zeros come in
        rows, columns = (slice(factor // 2, factor * length - factor // 2) for length in (5, 7))
        torch.testing.assert_close(got[..., rows, columns], expected[..., rows, columns])


def test_numbers_of_the_authors_code(models: dict[str, Network]) -> None:
    mobilenet, shufflenet, ccc2, dsnet = (models[name] for name in NAMES[1:])
    assert isinstance(mobilenet, SkipNetMobileNet) and isinstance(shufflenet, SkipNetShuffleNet)
    assert isinstance(ccc2, CCC2) and isinstance(dsnet, DSNet)
    strides = [block.conv.depthwise.conv.stride[0] for stage in mobilenet.encoder.stages for block in stage]
    assert strides == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert not any(block.conv.residual for stage in mobilenet.encoder.stages for block in stage)
    units = [[unit.depthwise.conv.out_channels for unit in stage] for stage in shufflenet.encoder.stages]
    assert units == [[54, *3 * [60]], [60, *7 * [120]], [120, *3 * [240]]]
    module = ccc2.encoder.level3[0]
    assert [branch[0].conv.kernel_size for branch in module.branches] == [(3, 1), (5, 1), (13, 1), (25, 1)]
    assert [branch[3].depthwise.dilation[0] for branch in module.branches] == [2, 3, 7, 13]
    # 20 classes over four branches, and 6: what is left over goes to the first
    odd = liteseg.create_model("ccc2", 6).decoder.fuse4[1]
    assert [branch[3].pointwise.out_channels for branch in odd.branches] == [3, 1, 1, 1]
    dilations = [unit.branch[1][0].conv.dilation[0] for unit in (*dsnet.encoder.stage2, *dsnet.encoder.stage3)]
    assert dilations == [1, 2, 5, 9, 1, 2, 5, 9, 2, 5, 9, 17, 2, 5, 9, 17]
    assert {module.num_parameters for module in dsnet.modules() if isinstance(module, nn.PReLU)} == {1}
    assert {module.eps for module in dsnet.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


@torch.no_grad()
def test_half_of_a_dsnet_units_channels_pass_by(models: dict[str, Network]) -> None:
    unit = models["dsnet"].encoder.stage1[0]
    x = torch.randn(1, 64, 5, 6)
    # shuffled in 4 groups of 16, the 32 that pass by are the first two of every four
    passed = unit(x).view(1, 16, 4, 5, 6)[:, :, :2].transpose(1, 2).flatten(1, 2)
    assert torch.equal(passed, x[:, :32])


@pytest.mark.parametrize("name", NAMES)
def test_other_classes(name: str, models: dict[str, Network]) -> None:
    state = models[name].state_dict()
    other = liteseg.create_model(name, 7)
    liteseg.load_weights(other, state, weights_mode="all-but-classifier")
    assert other.config == type(other).config_class(name, num_classes=7)
    kept = {key for key, value in other.state_dict().items() if torch.equal(value, state.get(key, torch.empty(0)))}
    assert {key for key in state if key.startswith("encoder.") and "classifier" not in key} <= kept
    assert not any(torch.equal(value, state[key]) for key, value in other.named_parameters() if "classifier" in key)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ccc2", {"num_classes": 3}, r"CCC2Config: num_classes: expected at least 4 \(one a branch\), got 3"),
        ("segnet", {"output_stride": 16}, "output_stride: expected none, segnet takes num_classes"),
        ("skipnet_mobilenet", {"backbone_weights": "x.pth"}, "backbone_weights: expected none, skipnet_mobilenet has"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        liteseg.create_model(name, **arguments)
