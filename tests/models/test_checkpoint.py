"""Weights files: round trips, bundled names, and everything that must be refused in one line."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import liteseg
from liteseg.models import LiteSeg, checkpoint, read_metadata
from liteseg_kernels.testing import trained_like

NAMES = ("sky", "road", "car")


@pytest.fixture(scope="module")
def model() -> LiteSeg:
    model = liteseg.create_model(
        "liteseg_mobilenetv2", 3, class_names=NAMES, filters=8, rates=[2, 4], input_scale=1.5, output_stride=16
    )
    return trained_like(model, torch.randn(2, 3, 64, 96))


@pytest.fixture(scope="module")
def file(model: LiteSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "camvid_mobilenetv2.safetensors"
    liteseg.save_weights(model, path, metadata={"provenance": "made by a test"})
    return path


@pytest.fixture
def bundled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_folder", lambda: file.parent)


def one_line(info: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(info.value)
    assert "\n" not in text
    return text


def test_rebuilt_from_the_file_alone(model: LiteSeg, file: Path) -> None:
    again = liteseg.create_model(weights=file)
    assert again.config == model.config
    assert again.config.class_names == NAMES and again.config.rates == (2, 4) and again.config.input_scale == 1.5
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_metadata(file: Path) -> None:
    metadata = read_metadata(file)
    assert metadata is not None
    assert metadata["provenance"] == "made by a test"
    assert metadata["name"] == "liteseg_mobilenetv2" and metadata["num_classes"] == 3
    assert metadata["mean"] == [0.485, 0.456, 0.406] and metadata["std"] == [0.229, 0.224, 0.225]
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["liteseg"]) == metadata


def test_arguments_that_agree_are_fine(file: Path) -> None:
    model = liteseg.create_model(
        "liteseg_mobilenetv2", 3, str(file), output_stride=16, rates=[2, 4], filters=8, separable=True, deeper=None
    )
    assert model.config.filters == 8


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("name", "liteseg_shufflenet"),
        ("name", "deeplabv3plus_mobilenetv2"),
        ("num_classes", 19),
        ("separable", False),
        ("deeper", False),
        ("short_residual", False),
        ("long_residual", False),
        ("filters", 96),
        ("rates", (3, 6, 9)),
    ],
)
def test_arguments_that_contradict(file: Path, argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected") as info:
        liteseg.create_model(weights=file, **{argument: value})
    assert str(value) in one_line(info)


def test_descriptions_may_differ(file: Path) -> None:
    model = liteseg.create_model(weights=file, input_scale=1.0, class_names=("a", "b", "c"))
    assert model.config.input_scale == 1.0 and model.config.class_names == ("a", "b", "c")


def test_output_stride_may_differ(model: LiteSeg, file: Path) -> None:
    other = liteseg.create_model(weights=file, output_stride=32)
    assert (model.config.output_stride, other.config.output_stride) == (16, 32)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert liteseg.create_model(weights=file).config.output_stride == 16
    with pytest.raises(ValueError, match="output_stride: expected one of"):
        liteseg.create_model(weights=file, output_stride=4)


def test_other_classes_on_request(model: LiteSeg, file: Path) -> None:
    other = liteseg.create_model("liteseg_mobilenetv2", 7, file, weights_mode="all-but-classifier")
    assert other.config.num_classes == 7 and other.config.class_names is None
    assert torch.equal(other.decoder[1].pointwise.weight, model.decoder[1].pointwise.weight)


@torch.no_grad()
def test_half_storage(model: LiteSeg, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    liteseg.save_weights(model, path, dtype=torch.float16)
    assert path.stat().st_size < 0.6 * file.stat().st_size
    with safe_open(path, "pt") as opened:
        assert opened.get_tensor("classifier.weight").dtype == torch.float16
        assert opened.get_tensor("daspp.pool.norm.num_batches_tracked").dtype == torch.int64
    again = liteseg.create_model(weights=path).eval()
    assert again.classifier.weight.dtype == torch.float32
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_half_storage_keeps_what_it_cannot_hold(tmp_path: Path) -> None:
    model = liteseg.create_model("liteseg_mobilenetv2", filters=4)
    model.daspp.pool.norm.running_var.fill_(1e6)
    liteseg.save_weights(model, tmp_path / "x.safetensors", dtype=torch.float16)
    again = liteseg.create_model(weights=tmp_path / "x.safetensors")
    assert (again.daspp.pool.norm.running_var == 1e6).all()


def test_bundled_names(bundled: None, model: LiteSeg) -> None:
    assert liteseg.list_weights() == ["camvid_mobilenetv2"]
    for arguments in ({"weights": "camvid"}, {"weights": "camvid_mobilenetv2"}):
        for name in (None, "liteseg_mobilenetv2"):
            assert liteseg.create_model(name, **arguments).config == model.config
    again = liteseg.create_model("liteseg_mobilenetv2", 3, filters=8, rates=(2, 4))
    liteseg.load_weights(again, "camvid")
    assert torch.equal(again.classifier.bias, model.classifier.bias)


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_unknown_bundled_names_list_the_known(bundled: None, name: str) -> None:
    with pytest.raises(ValueError, match="camvid_mobilenetv2.*path") as info:
        liteseg.create_model("liteseg_shufflenet", weights=name)
    assert repr(name) in one_line(info)


def test_pth_with_our_keys(model: LiteSeg, tmp_path: Path) -> None:
    path = tmp_path / "ours.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    switches = {"filters": 8, "rates": (2, 4), "output_stride": 16}
    again = liteseg.create_model("liteseg_mobilenetv2", 3, path, **switches)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert liteseg.create_model("liteseg_mobilenetv2", weights=path, **switches).config.num_classes == 3
    with pytest.raises(ValueError, match="num_classes: expected 3 for the weights .* got 19"):
        liteseg.create_model("liteseg_mobilenetv2", 19, weights=path, **switches)


class _Dangerous:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
def test_pickles_with_code_are_refused(container: str, protocol: int, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    content = {"a": torch.zeros(1), "b": _Dangerous(marker)}
    if container == "bare pickle":
        path.write_bytes(pickle.dumps({"b": content["b"]}, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    for load in (
        lambda: liteseg.create_model("liteseg_mobilenetv2", weights=path),
        lambda: liteseg.load_weights(liteseg.create_model("liteseg_mobilenetv2"), path),
        lambda: liteseg.create_model("liteseg_mobilenetv2", backbone_weights=path),
    ):
        with pytest.raises(ValueError, match="refused") as info:
            load()
        one_line(info)
    assert not marker.exists()


def test_whole_pickled_model_is_refused(model: LiteSeg, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="refused.*state dict") as info:
        liteseg.create_model("liteseg_mobilenetv2", weights=tmp_path / "model.pt")
    one_line(info)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pth.tar"])
@pytest.mark.parametrize("content", [b"", b"hello, this is no weights file", bytes(range(256)) * 8, b"\x80\x02]q\x00"])
def test_other_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a (weights|safetensors) file") as info:
        liteseg.create_model("liteseg_mobilenetv2", weights=path)
    assert path.name in one_line(info)


@pytest.mark.parametrize("keep", [10, 1000, 20000])
@pytest.mark.parametrize("suffix", [".safetensors", ".zip.pth", ".legacy.pth"])
def test_truncated_files(keep: int, suffix: str, file: Path, model: LiteSeg, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        path.write_bytes(file.read_bytes())
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix == ".zip.pth")
    path.write_bytes(path.read_bytes()[:-keep])
    with pytest.raises(ValueError, match="damaged") as info:
        liteseg.create_model("liteseg_mobilenetv2", weights=path)
    one_line(info)


@pytest.mark.parametrize("loaded", [[1, 2], 5, {}, {"a": 1}, {3: torch.zeros(1)}, torch.zeros(3)], ids=str)
def test_torch_files_without_a_state_dict(loaded: object, tmp_path: Path) -> None:
    torch.save(loaded, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="state dict") as info:
        liteseg.create_model("liteseg_mobilenetv2", weights=tmp_path / "x.pt")
    one_line(info)


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"390 missing \(backbone.*1 unexpected \(conv.weight\)") as info:
        liteseg.create_model("liteseg_mobilenetv2", weights=tmp_path / "x.safetensors")
    one_line(info)


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", '{"name": "x"}', '{"name": "x", "backbone": "vgg"}', '{"name": "x", "backbone": "mobilenetv2"}'],
)
def test_damaged_metadata(metadata: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"liteseg": metadata})
    with pytest.raises(ValueError, match="configuration|name: expected one of") as info:
        liteseg.create_model(weights=tmp_path / "x.safetensors")
    one_line(info)


def test_paths(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing.pth", "missing.safetensors"):
        with pytest.raises(ValueError, match="weights: expected"):
            liteseg.create_model("liteseg_mobilenetv2", weights=wrong)
    (tmp_path / "x.jpg").write_bytes(b"picture")
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth.*'\.jpg'"):
        liteseg.create_model("liteseg_mobilenetv2", weights=tmp_path / "x.jpg")
    with pytest.raises(TypeError, match="int"):
        liteseg.create_model("liteseg_mobilenetv2", weights=3)


def test_nothing_is_copied_on_error(model: LiteSeg) -> None:
    target = liteseg.create_model("liteseg_mobilenetv2", 3, filters=8, rates=(2, 4))
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = dict(model.state_dict())
    last = "decoder.1.norm.bias"
    broken = (
        {key: value for key, value in state.items() if key != last},
        {**state, "extra": torch.zeros(1)},
        {**state, last: torch.zeros(99)},
    )
    for bad in broken:
        with pytest.raises(ValueError, match=f"{last}|extra"):
            liteseg.load_weights(target, bad)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_saving_is_atomic(model: LiteSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def fails(*args: object) -> None:
        Path(str(args[1])).write_bytes(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match="no space"):
        liteseg.save_weights(model, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_saving_wrong_things(model: LiteSeg, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="existing folder"):
        liteseg.save_weights(model, tmp_path / "missing" / "x.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        liteseg.save_weights(model, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="dtype"):
        liteseg.save_weights(model, tmp_path / "x.safetensors", dtype=torch.int8)
    with pytest.raises(TypeError, match="Linear"):
        liteseg.save_weights(torch.nn.Linear(1, 1), tmp_path / "x.safetensors")
    changed = copy.deepcopy(model)
    changed.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"2 unexpected \(extra.weight"):
        liteseg.save_weights(changed, tmp_path / "x.safetensors")
    with pytest.raises(TypeError, match="Linear"):
        liteseg.load_weights(torch.nn.Linear(1, 1), {"weight": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_fused_models_save_the_same(model: LiteSeg, file: Path, tmp_path: Path) -> None:
    liteseg.save_weights(liteseg.fuse(model), tmp_path / "x.safetensors", metadata={"provenance": "made by a test"})
    assert (tmp_path / "x.safetensors").read_bytes() == file.read_bytes()


@torch.no_grad()
def test_loading_into_a_fused_model(model: LiteSeg, file: Path) -> None:
    switches = {"filters": 8, "rates": (2, 4), "output_stride": 16}
    fused = liteseg.fuse(liteseg.create_model("liteseg_mobilenetv2", 3, **switches))
    liteseg.load_weights(fused, file)
    x = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


def test_channels_last_can_be_saved(model: LiteSeg, tmp_path: Path) -> None:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    liteseg.save_weights(last, tmp_path / "x.safetensors")
    again = liteseg.create_model(weights=tmp_path / "x.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
