"""What the command line says: help where nothing is asked, options and not functions in errors, how a network runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from liteseg.train import options
from liteseg.wording import counted, in_options


@pytest.mark.parametrize("command", [(), ("benchmark",), ("train",), ("train", "--help")])
def test_a_command_alone_prints_help(run: Callable[..., tuple[int, str, str]], command: tuple[str, ...]) -> None:
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(("usage: liteseg", *command[:1])))


def test_help_of_train_is_a_page_of_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    cli = pytest.importorskip("liteseg.train.cli", reason="needs liteseg[train]")
    with pytest.raises(SystemExit):
        cli.main(["--help-all"])
    everything = capsys.readouterr().out
    assert len(everything.splitlines()) > 500 and len(options.HELP.splitlines()) < 50
    named = {word.strip(",") for word in options.HELP.split() if word.startswith("--")}
    # what this command line has in front of the trainer's; --nproc-per-node is torchrun's
    own = {"--weights-mode", "--deterministic", "--help-all", "--debug", "--nproc-per-node", "--out."}
    for option in named - own - {"--weights"}:
        assert option.removesuffix(".") in everything, option


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("create_model: name: expected one of a, b, got 'c'", "--model: expected one of a, b, got 'c'"),
        ("ModelConfig: output_stride: expected 8, got 3", "--output-stride: expected 8, got 3"),
        ("weights: expected a file, got the folder w", "--weights: expected a file, got the folder w"),
        ("a/b.jpg: predict: image: expected at least 32, got 4x5", "a/b.jpg: expected at least 32, got 4x5"),
        ("evaluate: label: expected ids, got 7", "label: expected ids, got 7"),
        ("camvid: split: expected one of train, got 'foo'", "--split: expected one of train, got 'foo'"),
        # of files and environment variables nothing is known
        ("LITESEG_BACKEND: name: expected one of a", "LITESEG_BACKEND: name: expected one of a"),
        ("w.pth: bias: expected [1], got [2]", "w.pth: bias: expected [1], got [2]"),
        ("w.pth: label size: expected 64x80", "w.pth: label size: expected 64x80"),
    ],
)
def test_errors_name_options(text: str, said: str) -> None:
    has = {"output_stride": "--output-stride", "weights": "--weights", "split": "--split", "size": "--size"}
    assert in_options(text, has.get, {"create_model: name": "--model", "predict: image": ""}) == said


def test_counts() -> None:
    assert [counted(n, "input") for n in (0, 1, 2)] == ["0 inputs", "1 input", "2 inputs"]


def test_one_failure_is_one_input(run: Callable[..., tuple[int, str, str]], weights, image_file, tmp_path) -> None:
    code, _, err = run("predict", image_file("a.png"), "none.png", "--weights", weights, "--out", tmp_path / "out")
    assert (code, err.splitlines()[0]) == (1, "liteseg: error: 1 input failed:")


@pytest.mark.parametrize("name", ["street.jpg", "clip.mp4"])
def test_results_go_to_a_folder(refused, weights, image_file, tmp_path, name: str) -> None:
    line = refused("predict", image_file("a.png"), "--weights", weights, "--out", tmp_path / name)
    assert f"--out: expected a folder, results in it are named after their inputs; got '{tmp_path / name}'" in line
    assert not (tmp_path / name).exists()


def test_bundled_weights_of_another_network(refused, image_file) -> None:
    line = refused("predict", image_file("a.png"), "--weights", "camvid", "--model", "liteseg_shufflenet")
    assert (
        "--weights: expected weights of shufflenet (of camvid there is only camvid_mobilenetv2) or the path of" in line
    )


def test_a_folder_called_like_bundled_weights(refused, image_file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    # so far that the data is missed, not the weights
    assert "camvid" in refused("evaluate", "--weights", "camvid", "--dataset", "camvid", "--data", "camvid")
    assert "--num-classes: expected 11" in refused(
        "predict", image_file("a.png"), "--weights", "camvid", "--num-classes=2"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_backend_that_cannot_run(refused, weights, image_file, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = ("predict", image_file("a.png"), "--weights", weights, "--backend")
    assert "--backend: expected one that can run here (" in refused(*arguments, "cuda")
    assert "or auto), got 'triton': needs a CUDA device, or TRITON_INTERPRET=1" in refused(*arguments, "triton")


def test_explain(run: Callable[..., tuple[int, str, str]], weights) -> None:
    arguments = ("explain", "--weights", weights, "--size", "64x96")
    code, out, err = run(*arguments, "--backend", "reference")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "liteseg_mobilenetv2, fused, float32, a picture of 64x96 on cpu"
    assert "  the module: not fused: no plan, the backend 'reference' was asked for" in lines
    assert "inverted_residual: reference, 17 calls" in lines and "upsample_argmax: reference, 1 call" in lines
    assert "  not cpu: not asked for" in lines
    # a network without a plan, and without weights
    code, out, _ = run("explain", "--model", "enet", "--size", "64x96", "--no-fuse")
    assert code == 0 and out.startswith("enet, not fused,") and "upsample_argmax: " in out
