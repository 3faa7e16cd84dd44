"""The authors' checkpoint layout, against an independent implementation of their networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import liteseg
from liteseg.models import export_official
from liteseg.models.official import to_official
from liteseg_kernels.testing import trained_like
from tests.models.base import largest_difference
from tests.models.official_nets import OFFICIAL

BACKBONES = sorted(OFFICIAL)
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(backbone: str) -> torch.nn.Module:
    return trained_like(OFFICIAL[backbone](), torch.randn(2, 3, 64, 96))


@pytest.fixture(scope="module")
def state(net: torch.nn.Module) -> StateDict:
    return dict(net.state_dict())


@pytest.fixture(scope="module")
def file(state: StateDict, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / f"liteseg-{backbone}-cityscapes.pth"
    # the layout of torch 0.4, which the authors used
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_entries_and_bytes(backbone: str, state: StateDict) -> None:
    entries = {"darknet19": 193, "mobilenetv2": 392, "shufflenet": 425}
    megabytes = {"darknet19": 82.2, "mobilenetv2": 17.7, "shufflenet": 14.2}
    counters = {"darknet19": 30, "mobilenetv2": 63, "shufflenet": 60}
    exported = to_official(liteseg.create_model(f"liteseg_{backbone}"))
    for each in (state, exported):
        assert len(each) == entries[backbone]
        size = sum(value.numel() * value.element_size() for value in each.values())
        assert round(size / 1e6, 1) == megabytes[backbone]
        assert sum(key.endswith("num_batches_tracked") for key in each) == counters[backbone]


@pytest.mark.parametrize("separable", [True, False], ids=["separable", "standard"])
@pytest.mark.parametrize("size", [(64, 96), (132, 164)], ids=["64x96", "132x164"])
@torch.no_grad()
def test_logits_are_the_authors(backbone: str, separable: bool, size: tuple[int, int]) -> None:
    net = trained_like(OFFICIAL[backbone](separable=separable), torch.randn(2, 3, 64, 96), seed=3).double()
    model = liteseg.create_model(f"liteseg_{backbone}", separable=separable).double().eval()
    liteseg.load_weights(model, net.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = net(x)
    assert largest_difference(model(x), expected) < 1e-9
    assert largest_difference(model.to_reference()(x), expected) < 1e-9
    assert largest_difference(liteseg.fuse(model)(x), expected) < 1e-9


@torch.no_grad()
def test_file_in_float32(backbone: str, net: torch.nn.Module, file: Path) -> None:
    model = liteseg.create_model(weights=file).eval()
    assert model.config == liteseg.create_model(f"liteseg_{backbone}").config
    x = torch.randn(2, 3, 64, 96)
    expected = net(x)
    assert largest_difference(model(x), expected) < 1e-4
    assert largest_difference(liteseg.fuse(model)(x), expected) < 1e-4


def test_training_mode_is_the_authors(backbone: str) -> None:
    net = trained_like(OFFICIAL[backbone](), torch.randn(2, 3, 64, 96), seed=5).double().train()
    model = liteseg.create_model(f"liteseg_{backbone}").double().train()
    liteseg.load_weights(model, net.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected, logits = net(x), model(x)
    # batch statistics over few values a channel amplify rounding
    assert largest_difference(logits, expected) < 1e-7
    expected.square().mean().backward()
    logits.square().mean().backward()
    assert largest_difference(model.classifier.weight.grad, net.last_conv[6].weight.grad) < 1e-6
    assert largest_difference(model.daspp.point.norm.running_var, net.aspp1.bn.running_var) < 1e-7


def test_round_trip(backbone: str, net: torch.nn.Module, state: StateDict, tmp_path: Path) -> None:
    model = liteseg.create_model(f"liteseg_{backbone}")
    liteseg.load_weights(model, state)
    path = tmp_path / "exported.pth"
    export_official(model, path)
    exported = torch.load(path, weights_only=True)
    assert set(exported) == set(state)
    for key, value in exported.items():
        if re.search(r"(mobile_features\.classifier|shuffle_features\.module\.fc)\.", key):
            # never run, and not part of our models
            assert value.shape == state[key].shape and not value.any()
        else:
            assert torch.equal(value, state[key]), key
    OFFICIAL[backbone]().load_state_dict(exported, strict=True)


def test_wrappers(backbone: str, state: StateDict) -> None:
    model = liteseg.create_model(f"liteseg_{backbone}")
    liteseg.load_weights(model, {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3})
    assert torch.equal(model.classifier.weight, state["last_conv.6.weight"])
    assert torch.equal(model.daspp.atrous[2].pointwise.weight, state["aspp4.atrous_convolution.pointwise.weight"])
    assert torch.equal(model.daspp.deep[0].depthwise.weight, state["aspp2.conv1.conv1.weight"])


def test_missing_counters_become_zero(backbone: str, state: StateDict) -> None:
    model = liteseg.create_model(f"liteseg_{backbone}")
    model.daspp.pool.norm.num_batches_tracked.fill_(9)
    liteseg.load_weights(model, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    assert model.daspp.pool.norm.num_batches_tracked == 0
    assert torch.equal(model.daspp.pool.norm.running_var, state["global_avg_pool.2.running_var"])


def unchanged(model: torch.nn.Module, before: StateDict) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bad_states_copy_nothing(backbone: str, state: StateDict) -> None:
    model = liteseg.create_model(f"liteseg_{backbone}")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    without = {key: value for key, value in state.items() if key not in ("bn1.weight", "last_conv.6.bias")}
    with pytest.raises(ValueError, match="2 missing.*daspp.project.norm.weight"):
        liteseg.load_weights(model, without)
    with pytest.raises(ValueError, match=r"1 unexpected \(bn7.weight\)"):
        liteseg.load_weights(model, {**state, "bn7.weight": torch.ones(96)})
    with pytest.raises(ValueError, match=r"daspp.pool.norm.bias: expected \[96\], got \[95\]"):
        liteseg.load_weights(model, {**state, "global_avg_pool.2.bias": torch.ones(95)})
    with pytest.raises(ValueError, match="expected torch.float32, got torch.int64"):
        liteseg.load_weights(model, {**state, "bn1.bias": torch.ones(96, dtype=torch.int64)})
    assert unchanged(model, before)


def test_other_backbone_is_named(backbone: str, state: StateDict) -> None:
    other = "liteseg_mobilenetv2" if backbone != "mobilenetv2" else "liteseg_shufflenet"
    with pytest.raises(ValueError, match=f"got {backbone}"):
        liteseg.load_weights(liteseg.create_model(other), state)


def test_class_count(backbone: str, state: StateDict, file: Path) -> None:
    model = liteseg.create_model(f"liteseg_{backbone}", num_classes=11)
    before = model.classifier.weight.detach().clone()
    with pytest.raises(ValueError, match='expected 11 classes, got 19.*weights_mode="all-but-classifier"'):
        liteseg.load_weights(model, state)
    with pytest.raises(ValueError, match="num_classes: expected 19"):
        liteseg.create_model(f"liteseg_{backbone}", num_classes=11, weights=file)
    liteseg.load_weights(model, state, weights_mode="all-but-classifier")
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.daspp.project.norm.weight, state["bn1.weight"])
    other = liteseg.create_model(num_classes=11, weights=file, weights_mode="all-but-classifier")
    assert other.config.num_classes == 11
    assert torch.equal(other.daspp.project.norm.weight, state["bn1.weight"])


def test_standard_convolutions_are_detected(backbone: str, tmp_path: Path) -> None:
    standard = dict(OFFICIAL[backbone](separable=False).state_dict())
    with pytest.raises(ValueError, match="separable=False"):
        liteseg.load_weights(liteseg.create_model(f"liteseg_{backbone}"), standard)
    path = tmp_path / "standard.pth"
    torch.save(standard, path)
    model = liteseg.create_model(weights=path)
    assert model.config.separable is False
    with pytest.raises(ValueError, match="separable: expected False"):
        liteseg.create_model(weights=path, separable=True)
    assert set(to_official(model)) == set(standard)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"deeper": False}, "deeper"),
        ({"short_residual": False}, "short_residual"),
        ({"long_residual": False}, "long_residual"),
        ({"rates": (3, 6)}, "rates"),
        ({"rates": (2, 4, 8)}, "rates"),
        ({"filters": 64}, "filters"),
        ({"output_stride": 16}, "output_stride"),
    ],
)
def test_export_of_other_structures_is_refused(switches: dict[str, object], message: str, tmp_path: Path) -> None:
    model = liteseg.create_model("liteseg_mobilenetv2", **switches)
    with pytest.raises(ValueError, match=message):
        export_official(model, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_export_of_a_fused_model() -> None:
    model = liteseg.create_model("liteseg_mobilenetv2")
    exported, fused = to_official(model), to_official(liteseg.fuse(model))
    assert list(exported) == list(fused)
    assert all(torch.equal(value, fused[key]) for key, value in exported.items())


def test_export_of_a_changed_model_is_refused(tmp_path: Path) -> None:
    model = liteseg.create_model("liteseg_mobilenetv2")
    model.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="extra.weight"):
        export_official(model, tmp_path / "x.pth")
