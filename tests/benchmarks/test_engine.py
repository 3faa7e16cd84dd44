"""The engine behind all benchmarks, and `liteseg benchmark`: what it leaves behind and refuses, and that one failure
leaves the rest alone."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import liteseg
import liteseg_kernels as lk
from benchmarks import cpu_networks, cpu_training
from liteseg.bench import kernels, networks, tables, turns
from liteseg.bench.record import append, latest, read, table
from liteseg.bench.registry import TWINS
from liteseg.bench.timing import peak_mb
from liteseg.cli import main
from liteseg.models import create_model
from tests.benchmarks.contestants import contestant
from tests.build.project import ROOT
from tests.data import folders, street_file


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`liteseg benchmark ...` with --out tmp_path/results: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["benchmark", *map(str, arguments), "--out", str(tmp_path / "results")])
        return code, *capsys.readouterr()

    return call


def test_results_are_appended_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.csv"
    append(path, ("a", "b"), [{"a": 1, "b": 0.123456789}])
    before = path.read_bytes()
    append(path, ("a", "b"), [{"a": "x,\ny", "b": None}])
    assert path.read_bytes().startswith(before)
    assert read(path) == [{"a": "1", "b": "0.12346"}, {"a": "x, y", "b": ""}]
    with pytest.raises(ValueError, match="expected a results file with the columns a, c"):
        append(path, ("a", "c"), [{"a": 1}])
    with pytest.raises(ValueError, match=r"rows: expected columns of r.csv, got \['nonsense'\]"):
        append(path, ("a", "b"), [{"nonsense": 1}])
    # a column that came later
    old = path.with_name("old.csv")
    old.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    append(old, ("a", "new", "b"), [{"a": 2, "new": 3}])
    assert [tuple(line.values()) for line in read(old)] == [("1", "", "0.12346"), ("x, y", "", ""), ("2", "3", "")]
    assert [line["a"] for line in latest([*read(path), {"a": "1", "b": "2"}], ["a"])] == ["1", "x, y"]
    assert table(("a", "b"), [["x|y", 1.0]]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |"


def test_contestants_take_turns_and_fail_alone(tmp_path: Path) -> None:
    makers = {mark: functools.partial(contestant, mark, str(tmp_path)) for mark in ("a", "raises", "dies", "d", "b")}
    before = os.environ.get("OMP_NUM_THREADS")
    found = turns.take_turns(makers, burn_in=1, runs=3, threads=1, reference="a")
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert found["raises"].reason == "ValueError: cannot" and found["dies"].reason == "its process died"
    assert found["d"].reason == "its process died while it was timed" and found["d"].times == []
    for mark in "ab":
        assert found[mark].facts == {"mark": mark, "last": mark} and len(found[mark].times) == 3
        assert all(0 < time < 1000 for time in found[mark].times)
    # three calls each to warm up, then in turns until one dies in its fifth call
    assert (tmp_path / "order").read_text() == "aaadddbbb" + "adb" + "adb" + "ab" * 2
    # the largest difference of an array counts
    assert (found["a"].difference, found["b"].difference) == (0, 0.25)
    with pytest.raises(ValueError, match="reference: expected the first contestant, got 'b'"):
        turns.take_turns(makers, runs=1, threads=1, reference="b")


def test_differences_of_results() -> None:
    assert turns.difference(np.float32([3.0, 4.0]), np.float32([3.0, 5.0])) == pytest.approx(1 / 34**0.5)
    assert turns.difference(np.float32([np.nan, 4.0]), np.float32([3.0, 5.0])) == float("inf")
    assert turns.difference(np.uint8([[1, 2]]), np.uint8([[1, 3]])) == 0.5
    assert turns.difference(np.uint8([1]), np.uint8([[1, 3]])) == float("inf")


def test_no_ratio_where_results_differ() -> None:
    def rows(ours: float | None, other: float | None) -> list[dict[str, Any]]:
        found = [
            {"provider": "liteseg", "p50 ms": 2.0, "error": ours},
            {"provider": "eager", "p50 ms": 3.0, "error": other},
            {"provider": "gone", "detail": "cannot run"},
        ]
        turns.add_ratios(found, "ratio", 0.1)
        return found

    assert [row.get("ratio") for row in rows(0.01, 0.0)] == [1.0, 1.5, None]
    for ours, other, known in ((0.5, 0.0, None), (None, 0.0, None), (0.0, 0.5, 1.0), (float("inf"), 0.0, None)):
        mine, theirs, gone = rows(ours, other)
        assert mine.get("ratio") == known and "ratio" not in theirs and gone["detail"] == "cannot run"
        assert theirs["detail"].startswith("no ratio: error") and theirs["detail"].endswith("at most 0.1")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants are made here, and each takes as long as the others."""

    def take_turns(makers: Any, *, reference: str, **_: Any) -> dict[str, turns.Outcome]:
        made = {name: make() for name, make in makers.items()}
        expected = made[reference].result

        def outcome(one: turns.Contestant) -> turns.Outcome:
            off = max(turns.difference(a, b) for a, b in zip(one.result, expected, strict=True))
            return turns.Outcome([1.0, 2.0], one.facts | one.finish(), difference=off)

        return {name: outcome(one) for name, one in made.items()}

    for script in (cpu_training, cpu_networks):
        monkeypatch.setattr(script, "take_turns", take_turns)


@pytest.mark.parametrize("fault", [False, True])
def test_a_training_step_with_wrong_gradients_has_no_ratio(
    fault: bool, one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "training.csv"
    if fault:
        loss = functools.partial(lk.UpsampleCrossEntropyLoss, label_smoothing=0.3)
        monkeypatch.setattr(lk, "UpsampleCrossEntropyLoss", loss)
    options = ["--networks", "liteseg_shufflenet", "--size", "2", "64", "96", "--dtypes", "float32", "--rounds", "2"]
    cpu_training.main([*options, "--providers", "liteseg", "eager channels_last", "--out", str(out)])
    lines = [line for line in read(out) if line["work"] == "liteseg_shufflenet"]
    assert [line["provider"] for line in lines] == ["liteseg", "eager channels_last"] and lines[1]["error"] == "0"
    assert (float(lines[0]["error"]) > 1e-2) == fault
    assert [bool(line["against liteseg"]) for line in lines] == [not fault] * 2
    assert lines[0]["detail"].startswith("no ratio") == fault


@pytest.mark.parametrize("fault", [False, True])
def test_networks_with_wrong_labels_have_no_ratio(
    fault: bool, one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "networks.csv"
    monkeypatch.setattr(cpu_networks, "PROVIDERS", ("liteseg", "eager"))
    if fault:
        labels = lk.runtime.labels
        monkeypatch.setattr(lk.runtime, "labels", lambda model, x, size: labels(model, x + 0.3, size))
    options = ["--networks", "liteseg_shufflenet", "--sizes", "64x96", "--outputs", "labels", "--threads", "1"]
    cpu_networks.main([*options, "--rounds", "2", "--out", str(out)])
    ours, eager = read(out)
    assert (ours["provider"], eager["provider"]) == ("liteseg", "eager") and eager["equal labels"] == "1.000000"
    assert ours["min ms"] == "1" and ours["size"] == "64x96" and ours["torch"] == torch.__version__
    assert (float(ours["equal labels"]) < 0.999) == fault
    assert (ours["against liteseg"], eager["against liteseg"]) == (("", "") if fault else ("1", "1"))
    assert eager["detail"].startswith("no ratio: error 0") == fault


def test_trained_networks_on_pictures(one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In int8, which noise says little about."""
    out = tmp_path / "networks.csv"
    monkeypatch.setattr(cpu_networks, "PROVIDERS", ("liteseg", "eager"))
    options = ["--networks", "liteseg_mobilenetv2", "--sizes", "90x160", "--outputs", "labels", "--threads", "1"]
    pictures = [str(ROOT / "tests/data/street.jpg"), str(ROOT / "liteseg/assets/drawn_street.jpg")]
    options += ["--dtypes", "int8", "--weights", "camvid", "--pictures", *pictures]
    cpu_networks.main([*options, "--rounds", "2", "--out", str(out)])
    ours, eager = read(out)
    assert ours["detail"] == eager["detail"] == "weights camvid, on street.jpg, first of 2"
    assert 0.85 < float(ours["equal labels"]) < 1 and eager["equal labels"] == "1.000000"
    assert ours["against liteseg"] == eager["against liteseg"] == "1"


def test_peak_memory_counts_what_a_call_holds() -> None:
    def call() -> torch.Tensor:
        return torch.ones(64, 1024, 1024).sum()

    found = peak_mb(call, "cpu")
    if found is None:
        pytest.skip("the system does not tell the peak of the resident memory")
    assert 0.9 * 268 < found < 1.5 * 268


def test_kernels(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--ops", "upsample_concat", "separable_conv2d", "--size", "64x96", "--runs", 3, "--quick")
    providers = ("--providers", "liteseg cpu", "liteseg cuda", "eager", "eager channels_last")
    code, out, err = run("kernels", *options, *providers)
    assert code == 0, err
    lines = read(tmp_path / "results" / "kernels.csv")
    assert sorted((x["op"], x["mode"]) for x in lines[::4]) == [
        (op, mode) for op in ("separable_conv2d", "upsample_concat") for mode in ("forward", "full")
    ]
    assert {x["provider"]: x["status"] for x in lines}["eager"] == "ok"
    for line in lines:
        assert line["torch"] == torch.__version__ and line["threads"] == str(torch.get_num_threads())
        if line["status"] != "ok":
            assert line["provider"].startswith("liteseg") and line["detail"]
            continue
        seconds = float(line["p50 ms"]) / 1e3
        assert float(line["GB/s"]) == pytest.approx(int(line["bytes"]) / seconds / 1e9, rel=1e-3)
        assert float(line["GFLOP/s"]) == pytest.approx(2 * int(line["MACs"]) / seconds / 1e9, rel=1e-3)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"kernels.csv", "kernels.md", "kernels-roofline.svg", "kernels-roofline.png"} <= names
    assert "![kernels-roofline](kernels-roofline.svg)" in (tmp_path / "results" / "kernels.md").read_text()
    assert "upsample_concat" in out


def test_every_op_has_cases_of_all_its_modes() -> None:
    found = {(case.layer.call.op, case.mode) for case in kernels.cases(sizes=[(64, 96)])}
    assert found == {
        (op, mode) for op in TWINS for mode in kernels.MODES if mode == "forward" or op not in kernels.WITHOUT_GRADIENT
    }


def test_a_loss_is_listed_first() -> None:
    row = dict.fromkeys(kernels.COLUMNS, "1") | {"status": "ok", "bytes": "8", "MACs": "4"}
    lines = [
        row | {"op": op, "provider": provider, "p50 ms": time}
        for op, ours in (("fast", "1"), ("slow", "3"))
        for provider, time in (("liteseg cpu", ours), ("eager", "2"))
    ]
    assert [(mine["op"], ratio) for mine, _, ratio in kernels.pairs(lines)] == [("slow", 2 / 3), ("fast", 2.0)]
    page = kernels.report(lines)
    assert page.index("| slow |") < page.index("| fast |")


def test_fps(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    providers = ("--providers", "eager", "onnxruntime", "liteseg unfused", "liteseg")
    code, out, err = run(
        *("fps", "--networks", "liteseg_shufflenet", "--size", "64x96", "--output", "labels", "--runs", 2),
        *("--threads", 1, *providers),
    )
    assert code == 0, err
    lines = read(tmp_path / "results" / "fps.csv")
    assert [line["provider"] for line in lines] == list(providers[1:])
    for line in lines:
        assert line["status"] == "ok", line["detail"]
        assert float(line["images/s"]) == pytest.approx(1e3 / float(line["mean ms"]), rel=1e-3)
        assert float(line["difference"]) <= networks.LIMITS["labels"]["float32"]
        assert (line["burn-in"], line["runs"], line["threads"]) == ("2", "2", "1")
    assert float(lines[-1]["times liteseg"]) == 1.0
    page = (tmp_path / "results" / "fps.md").read_text()
    # the ratio in front, where narrow pages show it
    assert re.search(r"^\| liteseg_shufflenet \| \d+\.\d\d \| 64x96 \| 1 \| labels \| float32 \|", page, re.MULTILINE)
    assert "onnxruntime" in out


def _row(case: kernels.Case, provider: str, time: float) -> dict[str, object]:
    call = {"op": case.layer.call.op, "layer": case.layer.name, "mode": case.mode, "provider": provider, "batch": 1}
    counts = {"bytes": 8, "MACs": 0, "of roofline": 0.5, "status": "ok", "dtype": "fp32", "threads": 1, "device": "x"}
    return {**call, **counts, "p50 ms": time}


def test_an_interrupted_benchmark_leaves_its_report(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def measure(case: kernels.Case, providers: tuple[str, ...], known: object, **_: object) -> list[dict[str, object]]:
        seen.append(tuple(providers))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return [_row(case, "liteseg cpu", 1.0), _row(case, "eager", 2.0)]

    monkeypatch.setattr(kernels, "measure", measure)
    monkeypatch.setattr(kernels, "peaks", lambda device, dtypes: kernels.Peaks(1.0, {torch.float32: 1.0}))
    code, _, err = run("kernels", "--quick", "--size", "64x96")
    assert (code, err) == (130, "liteseg: interrupted\n")
    # compiling takes longer than all the rest
    assert seen[0] == ("liteseg cpu", "eager", "eager channels_last")
    assert len(read(tmp_path / "results" / "kernels.csv")) == 4
    assert "| 2.00 |" in (tmp_path / "results" / "kernels.md").read_text()
    # before anything was measured there is nothing to report
    shutil.rmtree(tmp_path / "results")
    seen[:] = [()] * 2
    assert run("kernels", "--quick", "--size", "64x96")[0] == 130 and not (tmp_path / "results").exists()


def test_quick_begins_no_case_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list(kernels.cases(sizes=[(64, 96)], one_of_each=True))[:4]
    clock = iter((0.0, 0.0, 90.0, 150.0, 190.0, 250.0))
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(kernels, "peaks", lambda device, dtypes: kernels.Peaks(1.0, {torch.float32: 1.0}))
    monkeypatch.setattr(kernels, "measure", lambda case, *_, **__: [_row(case, "eager", 2.0)])
    said: list[str] = []
    assert kernels.run(tmp_path, chosen, seconds=200, say=said.append) == 2
    assert said[-1] == "200 s are over: 2 of 4 cases are not measured"


def test_quick_takes_both_outputs(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(networks, "measure", lambda case, *_, **__: seen.append(case.output) or [])
    run("fps", "--quick", "--networks", "enet")
    assert seen == ["logits", "labels"]


def test_ratios_on_a_logarithmic_axis_without_repetitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from liteseg.bench import plots

    drawn = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.update({path.name: figure}) or [])
    found = [
        {name: str(value) for name, value in _row(case, provider, time).items()}
        for case in kernels.cases(sizes=[(64, 96)], one_of_each=True)
        for provider, time in (("liteseg cpu", 1.0), ("eager", 3.0 if case.mode == "full" else 0.5))
    ]
    plots.draw_kernels(found, tmp_path)
    (axes,) = drawn["kernels-ratios"].axes
    assert axes.get_xscale() == "log"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) == len(found) // 2
    assert "mobilenetv2/upsample_argmax, forward" in labels and "64x96" not in "".join(labels)
    assert "64x96" in axes.get_title() and "batch 1" in axes.get_title()
    # bars begin at 1, losses to the left
    assert {(min(bar.get_x(), bar.get_x() + bar.get_width()), abs(bar.get_width())) for bar in axes.patches} == {
        (1, 2.0),
        (0.5, 0.5),
    }


def test_what_unpools_may_differ_more() -> None:
    assert networks.limit("ccc2", "logits", "float32") == 1e-3
    assert networks.limit("segnet", "logits", "float32") == 1e-2 == networks.limit("segnet", "labels", "float32")
    assert networks.limit("dsnet", "logits", "bfloat16") == 0.5


def test_what_cannot_run_is_a_row_with_its_reason(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, _, err = run(
        *("fps", "--networks", "enet", "--size", "64x96", "--output", "logits", "--runs", 1),
        *("--providers", "onnxruntime", "--dtype", "bfloat16"),
    )
    assert code == 2 and "expected at least one row that runs here" in err
    (line,) = read(tmp_path / "results" / "fps.csv")
    assert (line["status"], line["detail"]) == ("skipped", "onnxruntime is measured in float32 only")
    assert "onnxruntime is measured in float32 only" in (tmp_path / "results" / "fps.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fps", "--networks", "pspnet"), "--networks: expected of liteseg_mobilenetv2,"),
        (("fps", "--dtype", "int8"), "--dtype: expected of float32, bfloat16, float16, got 'int8'"),
        (("fps", "--size", "360"), "expected HEIGHTxWIDTH such as 512x1024, got '360'"),
        (("kernels", "--ops", "conv"), "--ops: expected of separable_conv2d,"),
        (("kernels", "--device", "cuda:99"), "--device: expected a device of this machine"),
        (("tables", "--table", "6"), "--table: expected of 1, 2, 3, 4, 5, got 6"),
        (("tables", "--networks", "pspnet"), "--networks: expected of liteseg_mobilenetv2,"),
        (("tables", "--providers", "tensorrt"), "--providers: expected of eager, compiled,"),
        (("tables", "--weights", "espnet"), "expected NETWORK=FILE, got 'espnet'"),
        (("tables", "--table", "2", "--weights", "pspnet=a.pth"), "--weights: expected one of liteseg_mobilenetv2;"),
        (("figures",), "expected --image FILE ... or --data DIR with --dataset NAME"),
        (("figures", "--data", "nowhere"), "--dataset: expected with --data, got none"),
        (("figures", "--data", "nowhere", "--dataset", "camvid"), "nowhere: folder not found"),
        (("figures", "--figure", "1", "--image", "a.jpg"), "--figure: expected of 2, 3, got 1"),
    ],
)
def test_wrong_usage(run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], text: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and text in err


def test_table_2_and_the_parameters_of_table_3(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the times of Table III are those of `fps`, tested above
    monkeypatch.setattr(
        networks, "measure", lambda case, providers, **_: [{"provider": name, "images/s": 2.0} for name in providers]
    )
    code, out, err = run("tables", "--table", 2, 3, 4)
    assert code == 0, err
    lines = read(tmp_path / "results" / "tables.csv")
    found = {(x["table"], x["row"], x["quantity"]): x for x in lines}
    counts = {key[1]: float(x["measured"]) for key, x in found.items() if key[2].startswith("count of the authors'")}
    assert counts == pytest.approx(
        {
            "Darknet19, standard": 124.68,
            "Darknet19, separable": 103.09,
            "MobileNetV2, standard": 18.86,
            "MobileNetV2, separable": 4.90,
            "ShuffleNet, standard": 9.36,
            "ShuffleNet, separable": 2.57,
        },
        abs=0.006,
    )
    for network, published in (
        ("liteseg_darknet19", 20.55),
        ("liteseg_mobilenetv2", 4.38),
        ("erfnet", 2.07),
        ("dsnet", 0.91),
    ):
        line = found["3", network, "parameters, M"]
        assert float(line["published"]) == published and float(line["measured"]) == pytest.approx(published, abs=0.005)
    assert all({x["row"] for x in lines if x["table"] == number} == set(networks.NETWORKS) for number in "34")
    times = [key[1:] for key, line in found.items() if key[2].startswith("images/s") and line["measured"] == "2"]
    engines = ("PyTorch eager", "PyTorch compiled", "ONNX Runtime", "OpenVINO", "ours")
    assert sorted(times) == sorted(
        (network, f"images/s at {size}, {engine}")
        for network in networks.NETWORKS
        for size in ("360x640", "1024x2048")
        for engine in engines
    )
    assert found["3", "dsnet", "images/s at 360x640, ours"]["published"] == "100.5"
    for network, size, published in (
        ("segnet", "360x640", 286.03),
        ("skipnet_mobilenet", "512x1024", 13.8),
        ("skipnet_shufflenet", "512x1024", 4.63),
        ("ccc2", "512x1024", 6.29),
        ("espnet", "512x1024", 9.67),
    ):
        line = found["4", network, f"GFLOPs, 2 x GMACs at {size}"]
        assert float(line["published"]) == published
        assert float(line["measured"]) == pytest.approx(published, rel=0.035)
    assert (
        float(found["4", "liteseg_darknet19", "GFLOPs, count of the authors' tool at 512x1024"]["published"]) == 103.09
    )
    # nothing but the scores on Cityscapes is missing
    empty = [x for x in lines if x["table"] == "4" and not x["measured"]]
    assert empty and all("mIoU, test" in x["quantity"] for x in empty)
    assert all("needs --data DIR (Cityscapes)" in x["detail"] for x in empty)
    page = (tmp_path / "results" / "tables.md").read_text()
    assert all(tables.TITLES[number] in page for number in (2, 3, 4)) and "swapped digits" in page


def test_tables_with_cityscapes(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    data = folders.cityscapes(tmp_path / "cityscapes", "zips", "fine", ("val",), per_city=1)
    path = tmp_path / "w.safetensors"
    liteseg.save_weights(create_model("liteseg_shufflenet"), path)
    chosen = ("--networks", "liteseg_shufflenet", "--weights", f"liteseg_shufflenet={path}")
    code, _, err = run("tables", "--table", 1, 4, 5, "--data", data, *chosen)
    assert code == 0, err
    found = {(x["table"], x["row"], x["quantity"]): x for x in read(tmp_path / "results" / "tables.csv")}
    val = found["4", "liteseg_shufflenet", "class mIoU, val"]
    assert 0 <= float(val["measured"]) <= 100 and val["published"] == ""
    row = "ShuffleNet, DASPP, FT, MS, DW"
    assert found["1", row, "val mIoU, 1024x2048"]["measured"] == val["measured"]
    assert "crop: expected images of at least 512x1024" in found["1", row, "val mIoU, 512x1024"]["detail"]
    assert 0 <= float(found["5", "liteseg_shufflenet", "sky, val IoU"]["measured"]) <= 100


def test_a_missing_folder_leaves_the_counts(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = run("tables", "--table", 4, "--networks", "enet", "--data", tmp_path / "nowhere")
    assert code == 0, err
    details = {x["detail"] for x in read(tmp_path / "results" / "tables.csv") if x["row"] == "enet"}
    assert any("folder not found" in detail for detail in details)


def test_figures(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    data = folders.camvid(tmp_path / "camvid", size=(64, 96))
    code, out, err = run("figures", "--data", data, "--dataset", "camvid", "--split", "val", "--count", 2)
    assert code == 0, err
    two, three = (Image.open(tmp_path / "results" / f"figure{number}.png") for number in (2, 3))
    # six panels, and three; two rows of pictures with their captions
    assert two.size == (6 * 100 + 4, 2 * (64 + 14 + 4) + 4) and three.size == (3 * 100 + 4, two.size[1])
    # a connection that is cut leaves a trace
    panels = [two.crop((4 + 100 * index, 18, 100 + 100 * index, 82)).tobytes() for index in range(6)]
    assert len(set(panels)) == 6


def test_only_liteseg_has_connections_to_cut(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "enet.safetensors"
    liteseg.save_weights(create_model("enet"), path)
    code, _, err = run("figures", "--figure", 2, "--image", street_file(), "--weights", path)
    assert code == 2 and "expected a LiteSeg network for figure 2, got ENet" in err
    assert list((tmp_path / "results").glob("*")) == []
