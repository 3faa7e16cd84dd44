"""liteseg predict: what is written for files, folders and globs, and what happens to bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import liteseg
from liteseg.data import CAMVID_PALETTE
from liteseg.files import find_inputs
from liteseg.image_io import overlay
from liteseg.palette import colorize
from liteseg.predict import predict
from liteseg.reading import read_image

from .conftest import SIZE


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_one_picture_gives_labels_and_overlay(run, model, weights, image_file, tmp_path) -> None:
    path, out = image_file("street.png"), tmp_path / "out"
    code, printed, err = run("predict", path, "--weights", weights, "--no-fuse", "--out", out)
    assert (code, err) == (0, "")
    assert printed.splitlines() == [str(out / "street_labels.png"), str(out / "street_overlay.png")]
    assert names(out) == ["street_labels.png", "street_overlay.png"]
    with Image.open(out / "street_labels.png") as image:
        # the values are the ids, a viewer shows the classes' colours
        assert image.mode == "P" and image.size == (SIZE[1], SIZE[0])
        labels = np.array(image)
        assert np.array_equal(np.array(image.convert("RGB")), colorize(labels, CAMVID_PALETTE))
    expected = liteseg.predict(model, read_image(path))
    assert np.array_equal(labels, expected) and len(np.unique(labels)) > 2
    painted = read_image(out / "street_overlay.png")
    assert np.array_equal(painted, overlay(read_image(path), labels, CAMVID_PALETTE, 0.5))


def test_fused_labels_equal_plain_ones(run, weights, image_file, tmp_path) -> None:
    path = image_file("street.png", 5)
    results = []
    for more in ([], ["--no-fuse"], ["--backend", "reference"]):
        assert run("predict", path, "--weights", weights, "--labels-only", "--out", tmp_path / "out", *more)[0] == 0
        results.append(np.array(Image.open(tmp_path / "out" / "street_labels.png")))
    assert names(tmp_path / "out") == ["street_labels.png"]
    assert (results[0] == results[1]).mean() >= 0.9999
    assert (results[0] == results[2]).mean() >= 0.9999


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(run, weights, image_file, tmp_path, dtype) -> None:
    path = image_file("a.png")
    assert run("predict", path, "--weights", weights, "--out", tmp_path / "full")[0] == 0
    assert run("predict", path, "--weights", weights, "--out", tmp_path / "half", "--dtype", dtype)[0] == 0
    full, half = (np.array(Image.open(tmp_path / d / "a_labels.png")) for d in ("full", "half"))
    # random weights leave most logits close together; unrelated labels would agree on a fifth
    assert (full == half).mean() > 0.75


def test_alpha_legend_and_scale(run, weights, image_file, tmp_path) -> None:
    path, out = image_file("a.png"), tmp_path / "out"
    assert run("predict", path, "--weights", weights, "--out", out, "--alpha", "0", "--scale", "1.5")[0] == 0
    assert np.array_equal(read_image(out / "a_overlay.png"), read_image(path))
    assert read_image(out / "a_labels.png").shape[:2] == SIZE
    assert run("predict", path, "--weights", weights, "--out", out, "--legend")[0] == 0
    assert read_image(out / "a_overlay.png").shape[1] > SIZE[1]


def test_confidence_fades_the_overlay(run, model, weights, image_file, tmp_path) -> None:
    path, out = image_file("a.png"), tmp_path / "out"
    arguments = ("predict", path, "--weights", weights, "--out", out, "--alpha", "1", "--no-fuse")
    assert run(*arguments)[0] == 0
    plain = np.array(Image.open(out / "a_labels.png"))
    assert run(*arguments, "--confidence")[0] == 0
    assert (np.array(Image.open(out / "a_labels.png")) == plain).mean() >= 0.999
    image = read_image(path).astype(float)
    shares = predict(model, path, output="probabilities")
    sure = shares.max(0)[:, :, None]
    assert np.ptp(sure) > 0.3
    painted = (1 - sure) * image + sure * colorize(shares.argmax(0).astype(np.uint8), CAMVID_PALETTE)
    assert (np.abs(read_image(out / "a_overlay.png") - painted) < 2).mean() >= 0.999


def test_folder_with_a_bad_file_keeps_the_others(run, weights, image_file, tmp_path) -> None:
    for name in ("in/a.png", "in/b.jpg", "in/deep/c.png"):
        image_file(name)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    image_file("in/small.png", size=(20, 40))
    (tmp_path / "in" / "notes.txt").write_text("not a picture, not looked at")
    out = tmp_path / "out"
    code, printed, err = run("predict", tmp_path / "in", "--weights", weights, "--out", out, "--quiet")
    assert code == 1
    assert names(out) == ["a_labels.png", "a_overlay.png", "b_labels.png", "b_overlay.png"]
    assert "2 files segmented" in printed
    lines = err.splitlines()
    assert lines[0] == "liteseg: error: 2 inputs failed:"
    assert len(lines) == 3
    assert "broken.jpg: damaged picture" in lines[1]
    assert "small.png: expected height and width of at least 32, got 20x40" in lines[2]


def test_missing_file_among_good_ones(run, weights, image_file, tmp_path) -> None:
    code, _, err = run("predict", image_file("a.png"), "no.png", "--weights", weights, "--out", tmp_path / "out")
    assert code == 1 and "no.png: no such file or folder" in err
    assert names(tmp_path / "out") == ["a_labels.png", "a_overlay.png"]


def test_progress_bar_on_many_files_only(run, weights, image_file, tmp_path) -> None:
    image_file("in/a.png"), image_file("in/b.png")
    _, _, err = run("predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out", "--labels-only")
    assert "2/2" in err and "file" in err
    for arguments in ([tmp_path / "in" / "a.png"], [tmp_path / "in", "--quiet"]):
        _, _, err = run("predict", *arguments, "--weights", weights, "--out", tmp_path / "out", "--labels-only")
        assert err == ""


def test_recursive_folder_keeps_sub_folders(run, weights, image_file, tmp_path) -> None:
    image_file("in/a.png"), image_file("in/deep/a.png", 1)
    out = tmp_path / "out"
    arguments = ("predict", tmp_path / "in", "--weights", weights, "--out", out, "--labels-only", "--quiet")
    assert run(*arguments, "--recursive")[0] == 0
    assert names(out) == ["a_labels.png", "deep/a_labels.png"]
    assert (out / "a_labels.png").read_bytes() != (out / "deep" / "a_labels.png").read_bytes()


def test_inputs_of_one_name_get_results_of_their_own(run, weights, image_file, tmp_path) -> None:
    inputs = [image_file("x/a.png", 0), image_file("y/a.png", 1), image_file("y/A.jpg", 2)]
    out = tmp_path / "out"
    code, _, err = run("predict", *inputs, "--weights", weights, "--out", out, "--labels-only", "--quiet")
    assert code == 0
    assert names(out) == ["A_3_labels.png", "a_2_labels.png", "a_labels.png"]
    assert len({(out / n).read_bytes() for n in names(out)}) == 3
    assert "a.png: results are named a_2, a is taken" in err


def test_results_never_overwrite_an_input(run, weights, image_file, tmp_path) -> None:
    first, second = image_file("a.png", 0), image_file("a_labels.png", 1)
    before = second.read_bytes()
    code, _, _ = run("predict", first, second, "--weights", weights, "--out", tmp_path, "--labels-only", "--quiet")
    assert code == 0 and second.read_bytes() == before
    assert names(tmp_path) == ["a.png", "a_2_labels.png", "a_labels.png", "a_labels_labels.png"]


def test_second_run_into_the_folder_of_the_pictures_ignores_its_results(run, weights, image_file, tmp_path) -> None:
    image_file("a.png")
    for _ in range(2):
        assert run("predict", tmp_path, "--weights", weights, "--out", tmp_path, "--quiet")[0] == 0
        assert names(tmp_path) == ["a.png", "a_labels.png", "a_overlay.png"]


def test_find_inputs(image_file, tmp_path, monkeypatch) -> None:
    a, b, deep = image_file("in/a.png"), image_file("in/b.jpg"), image_file("in/deep/c.png")
    image_file("in/.hidden.png")
    odd = image_file("in/what[1].png")
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)

    def found(*given: str, recursive: bool = False) -> list[tuple[Path, str]]:
        inputs, failures = find_inputs(given, out, recursive=recursive)
        assert failures == []
        return [(i.path.resolve(), i.name.as_posix()) for i in inputs]

    assert found("in/*.png") == [(a, "a"), (odd, "what[1]")]
    assert found("in/**/*.png", recursive=True) == [(a, "a"), (deep, "c"), (odd, "what[1]")]
    # a name with glob characters that exists is that file; found twice is taken once
    assert found("in/what[1].png", "in") == [(odd, "what[1]"), (a, "a"), (b, "b")]
    assert found("in", recursive=True)[2] == (deep, "deep/c")
    _, failures = find_inputs(["none.png", "*.gif", "in/deep/c.png"], out)
    assert failures == ["none.png: no such file or folder", "*.gif: no file matches this pattern"]
