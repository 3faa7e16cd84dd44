"""Weights as people have them: trainers' checkpoints, wrapped state dicts, and networks for other classes."""

from __future__ import annotations

import argparse
import collections
import pathlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import liteseg
from liteseg.models import LiteSeg
from liteseg.models.files import unwrap
from liteseg_kernels.testing import trained_like
from tests.models.official_nets import OFFICIAL

NAMES = ("sky", "road", "car")
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> LiteSeg:
    model = liteseg.create_model("liteseg_mobilenetv2", 3, class_names=NAMES, filters=8, input_scale=1.5)
    return trained_like(model).eval()


@pytest.fixture(scope="module")
def state(model: LiteSeg) -> StateDict:
    return dict(model.state_dict())


def same(first: nn.Module, second: StateDict) -> bool:
    own = first.state_dict()
    return own.keys() == second.keys() and all(torch.equal(own[key], value) for key, value in second.items())


SWITCHES = {"filters": 8}

PREFIXES = [
    "",
    "module.",
    "model.",
    "net.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.module.",
    "net.model.module.",
    "module.module.",
]


# two entries do: unwrapping does not look at the rest
TINY = {"backbone.stem.conv.weight": torch.arange(3.0), "classifier.bias": torch.ones(2)}


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
@pytest.mark.parametrize(
    "containers", ["", "model", "state_dict", "model_state_dict", "net", "ema", "ema model", "model state_dict net"]
)
def test_any_nesting(prefix: str, containers: str) -> None:
    loaded: Any = {prefix + key: value for key, value in TINY.items()}
    for name in reversed(containers.split()):
        loaded = {"epoch": 7, name: loaded, "optimizer": {"state": {}, "param_groups": []}}
    assert unwrap(loaded, "here") == TINY


def test_averages_go_first() -> None:
    zeros = {key: torch.zeros_like(value) for key, value in TINY.items()}
    # torch's own average counts what went into it
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{key}": value for key, value in TINY.items()}}
    assert unwrap({"model": zeros, "ema": averaged}, "here") == TINY
    # something else of that name is no reason to fail
    assert unwrap({"model": TINY, "ema": {"decay": 0.999}}, "here") == TINY


def test_real_wrappers(model: LiteSeg, state: StateDict) -> None:
    for wrapper in (torch.optim.swa_utils.AveragedModel(model), nn.DataParallel(nn.DataParallel(model))):
        again = liteseg.create_model("liteseg_mobilenetv2", 3, **SWITCHES)
        liteseg.load_weights(again, {"model": wrapper.state_dict()})
        assert same(again, state)
    # a part compiled on its own
    partly = {key.replace("backbone.", "backbone._orig_mod."): value for key, value in state.items()}
    assert unwrap(partly, "here").keys() == state.keys()


BESIDE = {
    "best_miou": np.float64(0.7),
    "lr": np.float32(1e-3),
    "step": np.int64(7),
    "fine": np.bool_(True),
    "host": np.str_("here"),
    "losses": np.arange(3.0),
    "shape": np.array([512, 1024]),
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs") / "first", sizes=[1, 2]),
    "counts": collections.Counter("ab"),
    "nothing": None,
}


@pytest.mark.parametrize("zipped", [True, False])
def test_values_beside_the_tensors(state: StateDict, tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": state, **BESIDE}, path, _use_new_zipfile_serialization=zipped)
    before = torch.serialization.get_safe_globals()
    assert same(liteseg.create_model(weights=path, **SWITCHES), state)
    assert torch.serialization.get_safe_globals() == before, "the list of what torch trusts is left as it was"


def test_numpy_1_wrote_other_names(state: StateDict, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "best": np.float64(0.5)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "x.pth").write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert same(liteseg.create_model(weights=tmp_path / "x.pth", **SWITCHES), state)


def test_what_torch_already_trusts_stays_trusted(state: StateDict, tmp_path: Path) -> None:
    torch.save({"model": state, "a": np.arange(2)}, tmp_path / "x.pth")
    with torch.serialization.safe_globals([np.ndarray]):
        liteseg.create_model(weights=tmp_path / "x.pth", **SWITCHES)
        assert np.ndarray in torch.serialization.get_safe_globals()


class _Act:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda marker: _Act(subprocess.call, ["touch", str(marker)]),
        lambda marker: _Act(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: _Act(np.save, str(marker), np.zeros(1)),
        lambda marker: _Act(np.fromfile, str(marker)),
        lambda marker: _Act(Path.touch, marker),
        # what an array of objects holds is unpickled as well
        lambda marker: np.array([_Act(Path.touch, marker)], dtype=object),
    ],
    ids=["subprocess", "eval", "np.save", "np.fromfile", "Path.touch", "array of objects"],
)
def test_code_beside_the_tensors_is_refused(state: StateDict, call: Any, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker.npy"
    torch.save({"state_dict": state, "best": np.float64(0.5), "evil": call(marker)}, path)
    with pytest.raises(ValueError, match=r"evil\.pth: refused: the pickle .*call"):
        liteseg.create_model(weights=path, **SWITCHES)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, r"got 'epoch' \(int\), 'weights' \(dict\)"),
        ({"model": [1], "args": "x"}, r"got 'model' \(list\), 'args' \(str\)"),
        ({"a": torch.zeros(1), "b": torch.zeros(1), "epoch": 3}, r"got 2 tensors and 'epoch' \(int\)"),
        ({str(i): i for i in range(9)}, r"'5' \(int\) and 3 more"),
        ({}, "got an empty one"),
        (torch.zeros(1), "got Tensor"),
    ],
)
def test_messages_say_what_was_found(loaded: Any, found: str, tmp_path: Path) -> None:
    torch.save(loaded, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth: expected a state dict .* as ema, state_dict, .*{found}") as info:
        liteseg.create_model(weights=tmp_path / "x.pth")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["liteseg_mobilenetv2", "liteseg_shufflenet", "erfnet", "enet", "espnet"])
def test_bare_state_dicts_say_their_classes(name: str, tmp_path: Path) -> None:
    switches = {"filters": 8} if name.startswith("liteseg") else {}
    made = liteseg.create_model(name, 7, **switches)
    torch.save(made.state_dict(), tmp_path / "x.pth")
    for given in (name, None):
        again = liteseg.create_model(given, weights=tmp_path / "x.pth", **switches)
        assert again.config.num_classes == 7 and again.config.name == name and same(again, dict(made.state_dict()))
    with pytest.raises(ValueError, match=r"num_classes: expected 7 .* got 5; .*weights_mode=\"all-but-classifier\""):
        liteseg.create_model(name, 5, weights=tmp_path / "x.pth", **switches)
    other = "liteseg_darknet19"
    with pytest.raises(ValueError, match=f"name: expected '{name}' for the weights in .* got '{other}'"):
        liteseg.create_model(other, weights=tmp_path / "x.pth")


def test_bare_state_dicts_say_their_convolutions(tmp_path: Path) -> None:
    made = liteseg.create_model("liteseg_mobilenetv2", 7, filters=8, separable=False, deeper=False)
    torch.save(made.state_dict(), tmp_path / "x.pth")
    assert liteseg.create_model(weights=tmp_path / "x.pth", filters=8).config == made.config


# what the trainer of an older version left, and of this one
def checkpoint(model: LiteSeg, *, old: bool) -> dict[str, Any]:
    switches = {"filters": 8}
    arguments = {"name": model.config.name, "num_classes": None, "class_names": NAMES, "switches": switches}
    own: dict[str, Any] = {"config": {"model": {**arguments, "input_scale": 1.5}}, "versions": {"torch": "2.13.0"}}
    if not old:
        own["model"] = model.config.to_dict()
    return {
        "epoch": 3,
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "current_model_state": {f"model.{key}": torch.zeros_like(value) for key, value in model.state_dict().items()},
        "liteseg": own,
    }


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_a_trainers_checkpoint_is_the_model(model: LiteSeg, state: StateDict, old: bool, tmp_path: Path) -> None:
    """Input scale, class names and switches: without them the same tensors score 49.8 instead of 57.0."""
    path = tmp_path / ("renamed.pth" if old else "last.ckpt")
    torch.save(checkpoint(model, old=old), path)
    again = liteseg.create_model(weights=path)
    assert again.config == model.config and same(again, state)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(liteseg.predict(again, picture), liteseg.predict(model, picture))
    with pytest.raises(ValueError, match="filters: expected 8 for the weights"):
        liteseg.create_model(weights=path, filters=96)
    other = liteseg.create_model("liteseg_mobilenetv2", 3, filters=8)
    liteseg.load_weights(other, path)
    assert same(other, state)


def test_a_checkpoint_without_class_names(model: LiteSeg, tmp_path: Path) -> None:
    content = checkpoint(model, old=True)
    content["liteseg"]["config"]["model"].update(class_names=None, num_classes=3, switches=None, name="enet")
    peer = liteseg.create_model("enet", 3)
    content["state_dict"] = {f"model.{key}": value for key, value in peer.state_dict().items()}
    torch.save(content, tmp_path / "last.ckpt")
    assert (
        liteseg.create_model(weights=tmp_path / "last.ckpt").config
        == liteseg.create_model("enet", 3, input_scale=1.5).config
    )
    del content["liteseg"]["config"]["model"]["name"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt: the model configuration in the file is damaged"):
        liteseg.create_model(weights=tmp_path / "last.ckpt")


@pytest.mark.parametrize("mode", ["all-but-classifier", "backbone"])
@pytest.mark.parametrize("source", ["file", "bare", "authors"])
def test_part_of_the_weights(model: LiteSeg, state: StateDict, source: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if source == "file" else "x.pth")
    switches: dict[str, Any] = {"filters": 8}
    if source == "file":
        liteseg.save_weights(model, path)
    elif source == "bare":
        torch.save(state, path)
    else:
        net = OFFICIAL["mobilenetv2"]()
        torch.save(net.state_dict(), path)
        whole = liteseg.create_model(weights=path)
        state, switches = dict(whole.state_dict()), {}
    if mode == "backbone":
        # another head is no hindrance
        switches = {"filters": 16, "separable": False}
    made = liteseg.create_model("liteseg_mobilenetv2", 5, path, weights_mode=mode, **switches)
    assert made.config.num_classes == 5 and made.config.class_names is None
    taken = {
        key
        for key, value in made.state_dict().items()
        if key in state and state[key].shape == value.shape and torch.equal(value, state[key])
    }
    wanted = {key for key in state if key.startswith("backbone.") or mode != "backbone"}
    wanted -= {"classifier.weight", "classifier.bias"}
    assert wanted <= taken
    other = liteseg.create_model("liteseg_mobilenetv2", 5, **switches)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    liteseg.load_weights(other, path, weights_mode=mode)
    changed = {key for key, value in other.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= wanted


def test_backbone_between_names(model: LiteSeg, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    liteseg.save_weights(model, path)
    made = liteseg.create_model("deeplabv3plus_mobilenetv2", 4, path, weights_mode="backbone")
    assert torch.equal(made.backbone.stem.conv.weight, model.backbone.stem.conv.weight)
    with pytest.raises(ValueError, match="name: expected 'liteseg_mobilenetv2' for the weights"):
        liteseg.create_model("liteseg_shufflenet", 4, path, weights_mode="backbone")


def test_wrong_modes(model: LiteSeg, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    liteseg.save_weights(model, path)
    with pytest.raises(ValueError, match="weights_mode: expected one of all, all-but-classifier, backbone, got 'head'"):
        liteseg.create_model(weights=path, weights_mode="head")
    with pytest.raises(ValueError, match="weights_mode: expected one of all"):
        liteseg.load_weights(model, path, weights_mode="head")
    with pytest.raises(ValueError, match="weights_mode: expected weights for 'backbone', got none"):
        liteseg.create_model("liteseg_mobilenetv2", weights_mode="backbone")
    with pytest.raises(ValueError, match=r"num_classes: expected 3 .*\(liteseg train: --weights-mode"):
        liteseg.create_model(weights=path, num_classes=4)
    peer = tmp_path / "peer.safetensors"
    liteseg.save_weights(liteseg.create_model("enet", 3), peer)
    with pytest.raises(ValueError, match="weights_mode: expected another than backbone, enet has none"):
        liteseg.create_model(weights=peer, weights_mode="backbone")


class _Config:
    pass


def test_classes_of_other_programs_are_refused_by_name(state: StateDict, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "config": _Config()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: refused: the pickle calls code \(.*test_wrapped\._Config\)"):
        liteseg.create_model(weights=tmp_path / "x.pth", **SWITCHES)
