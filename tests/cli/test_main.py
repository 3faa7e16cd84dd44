"""The command line as a whole: exit codes, one line for bad input, tracebacks on request only."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import liteseg
from liteseg import cli
from liteseg.reading import read_image

ROOT = Path(__file__).resolve().parent.parent.parent


class _Code:
    def __reduce__(self):
        return print, ("code in a pickle ran",)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The real thing in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "liteseg", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_predict_as_a_process(weights, image_file, tmp_path) -> None:
    done = process("predict", image_file("street.png"), "--weights", weights, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "out" / f"street_{what}.png") for what in ("labels", "overlay")]


def test_bad_input_as_a_process(weights) -> None:
    done = process("predict", "no/such/street.jpg", "--weights", weights)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "liteseg: error: no/such/street.jpg: no such file or folder\n"


def test_debug_shows_the_traceback(run, weights) -> None:
    for arguments in (("--debug", "predict", "none.jpg"), ("predict", "none.jpg", "--debug")):
        code, _, err = run(*arguments, "--weights", weights)
        assert code == 2
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1] == "liteseg: error: none.jpg: no such file or folder"


def test_bad_pictures(refused, weights, image_file, tmp_path) -> None:
    base = ("--weights", weights, "--out", tmp_path / "out")
    whole = image_file("whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    assert "missing.png: no such file or folder" in refused("predict", tmp_path / "missing.png", *base)
    assert "cut.png: damaged picture" in refused("predict", tmp_path / "cut.png", *base)
    assert "text.jpg: not a picture" in refused("predict", tmp_path / "text.jpg", *base)
    assert "empty: no pictures or videos in this folder" in refused("predict", tmp_path / "empty", *base)
    assert "*.gif: no file matches" in refused("predict", tmp_path / "*.gif", *base)
    line = refused("predict", image_file("small.png", size=(31, 64)), *base)
    assert "small.png" in line and "at least 32, got 31x64" in line
    line = refused("predict", tmp_path / "cut.png", tmp_path / "text.jpg", *base)
    assert "cut.png" in line and line.endswith("(and 1 more input failed)")
    assert not (tmp_path / "out").exists()


def test_bad_weights(refused, weights, image_file, tmp_path, capsys) -> None:
    picture = image_file("a.png")

    def reason(content: object, name: str = "w.pth", *more: object) -> str:
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name)
        return refused("predict", picture, "--weights", tmp_path / name, "--out", tmp_path / "out", *more)

    assert "expected a bundled name" in reason(None, "none.safetensors")
    assert "not a safetensors file" in reason(b"not weights", "w.safetensors")
    assert "not a weights file" in reason(b"not weights")
    assert "refused" in reason(pickle.dumps(_Code()))
    assert "refused" in reason({"weight": torch.zeros(1), "code": _Code()})
    assert "code in a pickle ran" not in capsys.readouterr().out
    assert "expected a state dict" in reason([1, 2, 3])
    state = liteseg.create_model(weights=weights).state_dict()
    classes = ("--num-classes", "11")
    missing = {k: v for k, v in state.items() if k != "classifier.weight"}
    assert "1 missing (classifier.weight)" in reason(missing, "w.pth", *classes)
    assert "1 unexpected (extra)" in reason({**state, "extra": torch.zeros(1)}, "w.pth", *classes)
    wrong = {**state, "classifier.weight": torch.zeros(11, 95, 1, 1)}
    assert "classifier.weight: expected [11, 96, 1, 1], got [11, 95, 1, 1]" in reason(wrong, "w.pth", *classes)
    assert "expected a weights file" in reason(b"text", "w.txt")


def test_arguments_that_contradict_the_weights(refused, weights, image_file) -> None:
    base = ("predict", image_file("a.png"), "--weights", weights)
    assert "--num-classes: expected 11" in refused(*base, "--num-classes", "19")
    assert "got 'liteseg_darknet19'" in refused(*base, "--model", "liteseg_darknet19")
    line = refused(*base, "--model", "liteseg_mobilenet")
    assert (
        "error: --model: expected one of" in line
        and "liteseg_mobilenetv2" in line
        and "got 'liteseg_mobilenet'" in line
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "gpu"], "--backend: expected one of 'reference', 'cpu', 'triton', 'cuda', 'auto', got 'gpu'"),
        (["--device", "tpu"], "--device: expected cpu, cuda, cuda:N or auto, got 'tpu'"),
        (["--device", "cuda:99"], "--device: expected a device of this machine"),
        (["--dtype", "int8"], "choose from"),
        (["--num-classes", "0"], "expected a whole number of at least 1, got '0'"),
        (["--scale", "-1"], "expected a number above 0, got '-1'"),
        (["--scale", "nan"], "expected a number above 0, got 'nan'"),
        (["--alpha", "2"], "expected a number from 0 to 1, got '2'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_options(refused, weights, image_file, arguments, words) -> None:
    assert words in refused("predict", image_file("a.png"), "--weights", weights, *arguments)


def test_unknown_backend_in_the_environment(refused, weights, image_file, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LITESEG_BACKEND", "gpu")
    for arguments in (("info",), ("predict", image_file("a.png"), "--weights", weights, "--out", tmp_path / "out")):
        assert "LITESEG_BACKEND: name: expected one of 'reference', 'cpu'" in refused(*arguments)


def test_usage_errors_are_one_line(refused) -> None:
    assert "invalid choice: 'segment'" in refused("segment")
    line = refused("predict", "a.png")
    assert "required: --weights" in line and line.endswith("(see liteseg predict --help)")
    assert "expected a model name or --all, got neither" in refused("profile")
    assert "expected HEIGHTxWIDTH such as 512x1024, got '512'" in refused("profile", "--all", "--size", "512")


@pytest.mark.parametrize("command", [[], ["predict"], ["evaluate"], ["profile"], ["info"], ["explain"], ["demo"]])
def test_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_version_and_info(run) -> None:
    assert run("--version") == (0, f"liteseg {liteseg.__version__}\n", "")
    code, out, _ = run("info")
    assert code == 0 and torch.__version__ in out and "reference" in out


def test_profile_prints_the_paper_table(run) -> None:
    code, out, _ = run("profile", "--all")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("liteseg_mobilenetv2 ") and "--dense" not in line]
    assert [line.split()[1:] for line in lines] == [
        ["2,223,872", "852,928", "24,907", "3,101,707", "4,382,707"],
        ["3,129.4", "373.0", "802.9", "4,305.4", "4.90"],
    ]


def test_profile_of_one_model(run, refused) -> None:
    code, out, _ = run("profile", "liteseg_shufflenet", "--size", "360x640", "--dense")
    assert code == 0 and "5,865,739" in out
    assert "(did you mean 'liteseg_shufflenet'?)" in refused("profile", "liteseg_shuflenet")
    assert "--all: expected without --dense" in refused("profile", "--all", "--dense")


def test_internal_errors_have_a_code_of_their_own(run, monkeypatch) -> None:
    def broken(args) -> int:
        raise KeyError("lost")

    monkeypatch.setattr(cli, "_info", broken)
    code, out, err = run("info")
    assert (code, out) == (70, "")
    assert err == "liteseg: internal error: KeyError: 'lost' (run again with --debug for the traceback)\n"
    code, _, err = run("info", "--debug")
    assert code == 70 and "Traceback" in err


def test_interruption(run, monkeypatch) -> None:
    def interrupted(args) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_info", interrupted)
    assert run("info") == (130, "", "liteseg: interrupted\n")


def test_unwritable_output_is_one_line(refused, weights, image_file, tmp_path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    line = refused("predict", image_file("a.png"), "--weights", weights, "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'}" in line


def test_train_without_lightning_names_the_extra(refused, monkeypatch) -> None:
    for name in [m for m in sys.modules if m == "liteseg.train" or m.startswith("liteseg.train.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    assert 'pip install "liteseg[train]"' in refused("train", "--config", "a.yaml")


def test_train_gets_its_arguments_untouched(run, monkeypatch) -> None:
    train = pytest.importorskip("liteseg.train.cli")
    seen = []
    monkeypatch.setattr(train, "main", lambda argv: seen.append(argv) or 1)
    assert run("train", "--config", "a.yaml", "--trainer.max_epochs", "5", "--debug")[0] == 1
    assert seen == [["--config", "a.yaml", "--trainer.max_epochs", "5", "--debug"]]


def test_demo_prints_paths_and_one_comparison(run, weights, tmp_path) -> None:
    code, out, err = run("demo", "--weights", weights, "--out", tmp_path / "out", "--rounds", "1", "--scale", "0.5")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"picture: {tmp_path / 'out' / 'drawn_street_overlay.png'}"
    assert len(lines) == 3
    share = float(lines[2].partition(" % of the pixels equal")[0].rpartition(" ")[2])
    assert 99.99 <= share <= 100
    assert "times as fast" in lines[2] and "threads" in lines[2] and "180x240" in lines[2]
    assert read_image(tmp_path / "out" / "drawn_street_labels.png").shape == (360, 480, 3)


def test_demo_of_unknown_weights_lists_the_bundled_ones(refused, tmp_path) -> None:
    line = refused("demo", "--weights", "moon", "--out", tmp_path)
    assert f"expected a bundled name ({', '.join(liteseg.list_weights()) or 'none'})" in line


def test_pipe_closed_by_its_reader_is_no_error() -> None:
    # the reader is gone long before the first line is written
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m liteseg info | true; echo ${{PIPESTATUS[0]}}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
