"""Every preset trains, evaluates and exports on small pictures in the folders of its data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pytorch_lightning", reason="needs liteseg[train]")

from liteseg.models import create_model
from liteseg.models.peers import PEERS
from liteseg.train import cli
from liteseg.train.presets import find_config, merge, preset, with_config
from tests.data import folders, street_file

BACKBONES = ("mobilenetv2", "shufflenet", "darknet19")
TABLE_1 = {
    "baseline": {"separable": False, "deeper": False, "short_residual": False, "output_stride": 32},
    "dense": {"separable": False},
    "dense_ft": {"separable": False},
    "dense_ft_ms": {"separable": False},
    "ft_ms": {},
}
RUNS = (
    *(f"cityscapes_mobilenetv2_official_{row}" for row in TABLE_1),
    *(f"cityscapes_{backbone}_official_ft_ms" for backbone in BACKBONES[1:]),
    "cityscapes_mobilenetv2_coarse",
    "cityscapes_mobilenetv2_modern_ohem_os16_trainval",
    "camvid_mobilenetv2_official",
    "camvid_mobilenetv2_ms_ohem",
    *(f"camvid_{backbone}" for backbone in BACKBONES),
    # two of the peers, one with this library's modules in it
    "camvid_skipnet_shufflenet",
    "cityscapes_dsnet_official",
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both data sets, their pictures cut from a real street."""
    folder = tmp_path_factory.mktemp("data")
    folders.cityscapes(folder / "cityscapes", "zips", "fine", ("train", "val"))
    folders.cityscapes(folder / "cityscapes", "zips", "coarse", ("train_extra",))
    folders.camvid(folder / "camvid", {"train": 8, "val": 2})
    street = Image.open(street_file())
    for number, path in enumerate(sorted((folder / "cityscapes/leftImg8bit").rglob("*.png"))):
        left = 20 * number % (street.width - 128)
        street.crop((left, 100, left + 128, 196)).resize((64, 48)).save(path)
    return {name: folder / name for name in ("cityscapes", "camvid")}


def _small(name: str) -> dict[str, Any]:
    """The preset with its crops sixteen times smaller and two steps an epoch.

    No side below 64: normalising the two values that a channel has at 32 diverges within a few steps."""
    config = preset(name)

    def shrink(augment: dict[str, Any]) -> dict[str, Any]:
        return {**augment, "crop": [max(64, side // 16) for side in augment["crop"]]} if "crop" in augment else augment

    data = config["data"]
    data["augment"] = shrink(data["augment"])
    if "passes" in data:
        data["passes"] = [shrink(one) for one in data["passes"]]
    changes = {"trainer": {"max_epochs": 1, "check_val_every_n_epoch": 1, "enable_progress_bar": False}}
    config = merge(config, merge(changes, {"data": {"batch_size": 2, "val_batch_size": 1, "num_workers": 0}}))
    if "before" in config:
        config["before"] = merge(config["before"], changes)
    return config


@pytest.mark.parametrize("name", RUNS)
def test_preset_trains_and_evaluates(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    config = merge(_small(name), {"data": {"root": str(roots[name.split("_")[0]])}, "out": str(tmp_path)})
    assert cli.main(["--config", json.dumps(config), "--trainer.logger", "false"]) == 0
    model = create_model(weights=tmp_path / "weights.safetensors")
    assert model.config.name == preset(name)["model"]["name"]
    assert model.config.num_classes == (19 if name.startswith("cityscapes") else 11)
    assert json.loads((tmp_path / "val.json").read_text())["images"] == (4 if name.startswith("cityscapes") else 2)
    passes = 4 if "_ms" in name else 1
    images = {"camvid": 8, "cityscapes": 8 if "trainval" in name else 4}[name.split("_")[0]]
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == images // 2 * passes
    assert (tmp_path / "before" / "weights.safetensors").is_file() == ("_ft" in name)


@pytest.mark.parametrize(
    ("word", "network"), [*((word, f"liteseg_{word}") for word in BACKBONES), *((word, word) for word in PEERS)]
)
def test_every_network_has_presets(word: str, network: str) -> None:
    for name in (f"camvid_{word}", f"{word}_cityscapes_official", f"ms_{word}_ohem_camvid"):
        assert preset(name)["model"]["name"] == network


@pytest.mark.parametrize("row", TABLE_1)
def test_rows_of_table_1(row: str) -> None:
    for backbone, rate in zip(BACKBONES, (1e-7, 1e-7, 1e-8), strict=True):
        config = preset(f"cityscapes_{backbone}_official_{row}")
        assert config["model"].get("switches", {}) == TABLE_1[row]
        assert config["model"]["name"] == f"liteseg_{backbone}"
        assert config["model"]["head_lr"] == config["model"]["backbone_lr"] == rate
        assert ("before" in config) == ("ft" in row)
        crops = [one.get("crop", config["data"]["augment"]["crop"]) for one in config["data"].get("passes", [{}])]
        assert crops == ([[512, 1024], [768, 1536], [360, 640], [720, 1280]] if "ms" in row else [[512, 1024]])
        if "ft" in row:
            before = merge(config, config["before"])
            assert before["data"]["train_split"] == "train_extra" and before["data"]["passes"] is None
            assert (before["trainer"]["max_epochs"], before["model"]["hold_epochs"]) == (20, 10)


def test_fine_run_starts_from_the_coarse_one(roots: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    config = merge(_small("cityscapes_mobilenetv2_ft"), {"out": str(tmp_path), "ema_decay": 0})
    config["data"]["root"] = str(roots["cityscapes"])
    seen: list[tuple[str, np.ndarray]] = []
    setup = cli.SegmentationModule.setup

    def record(self: Any, stage: str) -> None:
        seen.append((self.trainer.datamodule.train_split, self.model.classifier.weight.detach().numpy().copy()))
        setup(self, stage)

    monkeypatch.setattr(cli.SegmentationModule, "setup", record)
    arguments = ["--config", json.dumps(config), "--trainer.logger", "false"]
    assert cli.main(arguments) == 0
    coarse = create_model(weights=tmp_path / "before" / "weights.safetensors")
    assert [split for split, _ in seen] == ["train_extra", "train"]
    assert np.array_equal(seen[1][1], coarse.classifier.weight.detach().numpy())
    # the coarse run is over: the same command goes on with the fine one
    assert cli.main(arguments) == 0
    assert [split for split, _ in seen] == ["train_extra", "train", "train"]


def test_find_config(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    expected = preset("camvid_mobilenetv2")
    for name in ("configs/camvid_mobilenetv2.yaml", "camvid_mobilenetv2.yaml", "camvid_mobilenetv2"):
        assert json.loads(find_config(name)) == expected
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "camvid_mobilenetv2.yaml").write_text("")
    assert find_config("configs/camvid_mobilenetv2.yaml") == "configs/camvid_mobilenetv2.yaml"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("other/camvid_mobilenetv2.yaml", "expected an existing file or the name of a preset"),
        (
            "camvid_mobilenet",
            "words joined by _, one of camvid, cityscapes, folder; one of mobilenetv2, shufflenet, darknet19",
        ),
        ("camvid_official", "expected a preset with one of mobilenetv2, shufflenet, darknet19"),
        ("camvid_segnet_skipnet_shufflenet", "expected a preset with one of mobilenetv2, shufflenet, darknet19"),
        ("camvid_mobilenetv2_shufflenet", "expected a preset with one of mobilenetv2, shufflenet, darknet19"),
        ("camvid_mobilenetv2_ft", "expected no ft with camvid, mobilenetv2, modern"),
    ],
)
def test_wrong_preset_names(name: str, expected: str) -> None:
    with pytest.raises(ValueError, match="^config: ") as error:
        find_config(name)
    assert expected in str(error.value) and repr(name) in str(error.value)


def test_order_of_words_does_not_matter_and_changes_come_last() -> None:
    assert preset("official_ms_cityscapes_shufflenet") | {"out": ""} == preset("cityscapes_shufflenet_ms_official") | {
        "out": ""
    }
    # the modern recipe's own number of epochs is 200
    assert preset("cityscapes_mobilenetv2_coarse")["trainer"]["max_epochs"] == 20


def test_changes_go_between_configurations_and_options() -> None:
    argv = ["--config", "a", "--config=b", "--data.root", "x"]
    assert with_config(argv, {"k": 1}) == ["--config", "a", "--config=b", "--config", '{"k": 1}', "--data.root", "x"]
