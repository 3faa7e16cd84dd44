"""The GPU day's script without a GPU: a dry run of its cheap sections, and each promise it makes about a bad day."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_day, report, rows, speed
from benchmarks.day import Day
from benchmarks.rows import CHECK, CHECK_KEY, SECTION, SPEED, Outcome, Row, Sheet, Skip
from liteseg.bench import registry, shapes
from liteseg_kernels import _dispatch

HERE = {
    "device": "Test Device 1",
    "driver": "1",
    "torch": torch.__version__,
    "triton": "3",
    "commit": "abc",
    "sources": "one",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rows.environment.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))
    monkeypatch.setenv(rows.ENVIRONMENT_VARIABLE, json.dumps(HERE))
    yield
    rows.environment.cache_clear()


def checks(folder: Path) -> Sheet:
    return Sheet(folder / "checks.csv", CHECK, CHECK_KEY, folder / "running.json")


def row(name: str, run: Callable[[], Any] = dict, **settings: Any) -> Row:
    return Row({"check": name, "case": "c"}, run, **settings)


def run(rows_: list[Row], folder: Path, seconds: float = 100.0, since: str = "") -> tuple[Outcome, list[str]]:
    last: list[Outcome] = []
    left = rows.run_rows(rows_, checks(folder), time.time() + seconds, since, last.append)
    return last[-1], left


def statuses(folder: Path) -> list[tuple[str, str]]:
    return [(line["check"], line["status"]) for line in rows.read(folder / "checks.csv")]


def test_dry_run_resumes_and_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(rows.ENVIRONMENT_VARIABLE)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    # the second call finds the first one's rows; set here so that the command's own setting is undone after the test
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    results = tmp_path / "results"
    call = ["ceilings", "--dry-run", "--results", str(results), "--logs", str(tmp_path / "logs"), "--only", "copy"]
    assert gpu_day.main(call) == 0
    (file,) = results.glob("*-ceilings.csv")
    lines = rows.read(file)
    assert [(line["op"], line["status"]) for line in lines] == [("copy", "ok")] * 2
    assert all(float(line["GB/s"]) > 0 and line["torch"] == torch.__version__ for line in lines)
    os.environ.pop(rows.ENVIRONMENT_VARIABLE)
    rows.environment.cache_clear()
    assert gpu_day.main(call) == 0
    assert rows.read(file) == lines
    assert "2 ok, 0 failed, 0 skipped, 0 left" in capfd.readouterr().out
    (page,) = (tmp_path / "out/results").glob("*-summary.md")
    assert "| copy, 4 GiB | bytes |" in page.read_text()
    assert (tmp_path / "out/logs/ceilings.txt").is_file()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["parity", "speed"], "SECTION: expected one of build, info, ceilings,"),
        (["--budget", "0"], "--budget: expected a number above 0, got 0"),
    ],
)
def test_wrong_arguments_are_named(given: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main(given)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main(["info", "--logs", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "gpu-day: torch sees no CUDA device (--dry-run needs none, and shows no times)\n"


def test_rows_run_by_rank_within_the_time(tmp_path: Path) -> None:
    given = [row("late", rank=2), row("long", rank=0, cost=1000), row("first", rank=1)]
    outcome, left = run(given, tmp_path)
    assert statuses(tmp_path) == [("first", "ok"), ("late", "ok")]
    assert left == ["long, c"]
    assert (outcome.ok, outcome.left, outcome.first_left) == (2, 1, ["long, c"])


def test_a_failed_row_leaves_the_others_alone(tmp_path: Path) -> None:
    def fail() -> Any:
        raise ValueError("this is wrong")

    def skip() -> Any:
        raise Skip("cannot be had")

    outcome, _ = run([row("a", fail), row("b", skip), row("c", lambda: {"status": "wrong"}), row("d")], tmp_path)
    assert statuses(tmp_path) == [("a", "failed"), ("b", "skipped"), ("c", "wrong"), ("d", "ok")]
    assert (outcome.ok, outcome.failed, outcome.skipped, outcome.left) == (1, 2, 1, 0)
    assert rows.read(tmp_path / "checks.csv")[0]["detail"] == "ValueError: this is wrong"


def test_a_device_fault_ends_the_process_after_its_row(tmp_path: Path) -> None:
    def fault() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(rows.DeviceFault):
        run([row("a", fault), row("b")], tmp_path)
    assert statuses(tmp_path) == [("a", "failed")]
    assert not checks(tmp_path).marker.exists()
    outcome, _ = run([row("a", fault), row("b")], tmp_path)
    assert statuses(tmp_path) == [("a", "failed"), ("b", "ok")]
    assert (outcome.ok, outcome.failed) == (1, 1)


def test_known_rows_are_run_again_for_other_sources_or_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([row("a"), row("b", always=True)], tmp_path)
    run([row("a"), row("b", always=True)], tmp_path)
    assert statuses(tmp_path) == [("a", "ok"), ("b", "ok"), ("b", "ok")]
    run([row("a")], tmp_path, since="9999")
    monkeypatch.setenv(rows.ENVIRONMENT_VARIABLE, json.dumps(HERE | {"sources": "two"}))
    rows.environment.cache_clear()
    run([row("a")], tmp_path)
    assert statuses(tmp_path)[3:] == [("a", "ok"), ("a", "ok")]


def test_times_of_pytorch_outlive_our_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ops.csv"
    for provider in ("liteseg triton", "eager"):
        rows.append(path, SPEED, {"op": "o", "provider": provider, "status": "ok"})
    assert len(rows.known(path, ("provider",), "")) == 2
    monkeypatch.setenv(rows.ENVIRONMENT_VARIABLE, json.dumps(HERE | {"sources": "two"}))
    rows.environment.cache_clear()
    assert rows.known(path, ("provider",), "") == {("eager",): "ok"}
    monkeypatch.setenv(rows.ENVIRONMENT_VARIABLE, json.dumps(HERE | {"sources": "two", "torch": "0"}))
    rows.environment.cache_clear()
    assert rows.known(path, ("provider",), "") == {}


def test_a_csv_of_other_columns_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="path: expected the columns"):
        rows.append(path, CHECK, {"check": "a"})
    with pytest.raises(ValueError, match=r"values: expected columns of b.csv, got \['nonsense'\]"):
        rows.append(tmp_path / "b.csv", CHECK, {"nonsense": 1})
    assert path.read_text() == "x,y\n1,2\n"


SECTION_SCRIPT = """
import json, os, sys, time
from pathlib import Path
logs, folder = Path(sys.argv[1]), Path(sys.argv[2])
known = (folder / "checks.csv").read_text() if (folder / "checks.csv").exists() else ""
def outcome(**values):
    (logs / "parity-outcome.json").write_text(json.dumps(
        {"ok": 0, "failed": 0, "skipped": 0, "left": 0, "first_left": []} | values))
def begin(name, limit):
    (folder / "running.json").write_text(json.dumps(
        {"key": {"check": name}, "started": time.time(), "limit": limit}))
print("here", flush=True)
"""


def supervised(tmp_path: Path, script: str, seconds: float = 60.0) -> gpu_day.Result:
    place = checks(tmp_path)
    command = [sys.executable, "-c", SECTION_SCRIPT + script, str(tmp_path), str(tmp_path)]
    return gpu_day.supervise("parity", command, place, tmp_path, time.time() + seconds)


def test_a_hanging_row_is_recorded_and_passed_over(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        """
if "hangs" in known:
    outcome(ok=3, failed=1)
else:
    begin("hangs", 0.2)
    # what the row started must end with it
    if os.fork() == 0:
        time.sleep(1)
        (folder / "survived").write_text("")
    time.sleep(100)
""",
    )
    assert (result.status, result.outcome.ok, result.outcome.failed) == ("failed", 3, 1)
    assert statuses(tmp_path) == [("hangs", "timeout")]
    time.sleep(1.2)
    assert not (tmp_path / "survived").exists()


def test_a_crashing_row_is_recorded_and_passed_over(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        """
if "crashes" in known:
    outcome(ok=1)
else:
    begin("crashes", 100)
    os.abort()
""",
    )
    assert (result.status, statuses(tmp_path)) == ("ok", [("crashes", "crashed")])
    assert "exit code -6: here" in rows.read(tmp_path / "checks.csv")[0]["detail"]


def test_a_section_goes_on_in_a_fresh_process_after_a_device_fault(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        f"""
outcome(failed=1, ok=5)
if not (folder / "second").exists():
    (folder / "second").write_text("")
    sys.exit({gpu_day._DEVICE_FAULT})
""",
    )
    assert (result.status, result.outcome.ok, result.detail) == ("failed", 5, "")
    assert (tmp_path / "parity.txt").read_text() == "here\nhere\n"


def test_a_section_that_cannot_start_says_why(tmp_path: Path) -> None:
    result = supervised(tmp_path, "raise SystemExit('no module named x')")
    assert result.status == "failed" and result.outcome.failed == 1
    assert result.detail == "exit code 1: no module named x (see parity.txt)"


def test_a_section_is_stopped_at_its_limit_with_what_it_has(tmp_path: Path) -> None:
    result = supervised(tmp_path, "outcome(ok=2, left=7)\nbegin('slow', 1000)\ntime.sleep(100)", seconds=-4.0)
    assert (result.status, result.outcome.ok, result.outcome.left) == ("partial", 2, 7)
    # the row that was cut off is left for the next call
    assert statuses(tmp_path) == []


SMALL = list(shapes.one_of_each(size=(32, 48), geometry=False))


@pytest.mark.parametrize("section", gpu_day.SECTIONS)
def test_rows_have_names_of_their_own(section: str, tmp_path: Path) -> None:
    # rows with equal keys would count as run once the first of them is
    day = dataclasses.replace(Day.make(False, tmp_path, tmp_path), sizes=((360, 640),))
    module = importlib.import_module(f"benchmarks.{gpu_day.SECTIONS[section][0]}")
    key = gpu_day.sheet(section, tmp_path, tmp_path).key
    found = list(getattr(module, section)(day))
    assert len({tuple(row.key.get(name, "") for name in key) for row in found}) == len(found) > 0
    assert all(set(row.key) <= set(key) and row.cost < min(row.limit, gpu_day.BUDGET - 10) for row in found)


def test_a_network_is_measured_without_what_small_grids_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITESEG_EARLY_LAUNCH", "1")
    monkeypatch.delenv("LITESEG_CLUSTERS", raising=False)
    seen = []
    for provider in ("liteseg cuda graph", *speed.WITHOUT):
        with speed.switched_off(provider):
            seen.append(_dispatch.small_grids())
    off = [{name for name, on in switches.items() if not on} for switches in seen]
    assert off == [set(), {"early launches"}, {"clusters"}]
    assert os.environ["LITESEG_EARLY_LAUNCH"] == "1" and "LITESEG_CLUSTERS" not in os.environ


def test_networks_call_every_op() -> None:
    assert {layer.call.op for layer in SMALL} == set(registry.TWINS)


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.call.op)
def test_twins_compute_what_the_ops_compute(layer: shapes.Layer) -> None:
    differentiable = layer.call.op not in ("preprocess", "upsample_argmax")
    for full in (False, True) if differentiable else (False,):
        work = registry.Work(layer.call.batch(2), torch.float32, "cpu", channels_last=True, full=full)
        off = registry.error(registry.on("reference", work)(), work.torch())
        # the fold of the reference and of the twin add up in another order
        assert off < 1e-5, (full, off)
        assert registry.error(work.exact(), work.torch()) == 0


def test_calls_are_those_of_the_network() -> None:
    layers = shapes.inference("liteseg_mobilenetv2", (360, 640))
    counts = {op: sum(x.count for x in layers if x.call.op == op) for op in registry.TWINS}
    assert counts["inverted_residual"] == 17 and counts["separable_conv2d"] == counts["shuffle_unit"] == 0
    (concat,) = (layer for layer in layers if layer.call.op == "upsample_concat_separable_conv2d")
    assert concat.name == "mobilenetv2/upsample_concat_separable_conv2d 360x640"
    assert dict(concat.call.arguments)["skip"].shape == (1, 24, 90, 160)
    assert [a.shape for _, a in concat.call.batch(8).arguments[:2]] == [(8, 96, 12, 20), (8, 24, 90, 160)]
    (first, *_) = (layer.call for layer in layers if layer.call.op == "inverted_residual")
    # only maps have a batch: weights and the flag called residual stay
    assert dict(first.batch(4).arguments)["x"].shape[0] == 4
    assert [a for a in first.batch(4).arguments if a[0] != "x"] == [a for a in first.arguments if a[0] != "x"]


def test_bytes_and_products_are_counted_from_the_shapes() -> None:
    (call,) = (layer.call for layer in SMALL if layer.call.op == "upsample_concat")
    (n, c, h, w), (_, k, height, width) = (spec.shape for _, spec in call.arguments[:2])
    moved = c * h * w + k * height * width + (c + k) * height * width
    assert registry.cost(call, torch.float16) == registry.Cost(2 * n * moved, 0)
    backward = (c + k) * height * width + 2 * (c * h * w + k * height * width)
    assert registry.cost(call, torch.float16, full=True) == registry.Cost(2 * n * (moved + backward), 0)
    separable = dict(next(layer.call for layer in SMALL if layer.call.op == "separable_conv2d").arguments)
    (_, c, h, w), out = separable["x"].shape, separable["pointwise_weight"].shape[0]
    taps = torch.Size(separable["depthwise_weight"].shape[2:]).numel()
    call = next(layer.call for layer in SMALL if layer.call.op == "separable_conv2d")
    assert registry.cost(call, torch.float32).macs == h * w * c * (taps + out)


def test_the_installed_triton_takes_our_call_of_do_bench() -> None:
    testing = pytest.importorskip("triton.testing")
    inspect.signature(testing.do_bench).bind(print, warmup=20, rep=60, quantiles=(0.2, 0.5, 0.8))


def test_the_summary_lists_losses_and_wrong_results(tmp_path: Path) -> None:
    def op(shape: str, provider: str, p50: float, status: str = "ok", **values: Any) -> None:
        key = {"op": "upsample_argmax", "mode": "fwd", "shape": shape, "dtype": "fp16", "provider": provider}
        rows.append(
            tmp_path / "d-ops.csv", SPEED, {**key, "p50": p50, "status": status, "share of copy": 0.5, **values}
        )

    op("win 1024x2048", "liteseg triton", 9.0)
    op("win 1024x2048", "liteseg triton", 1.0)
    op("win 1024x2048", "liteseg cuda", 0.1, status="wrong", error=0.7)
    op("win 1024x2048", "eager", 3.0)
    op("win 1024x2048", "compiled", 2.0)
    op("loss", "liteseg cuda", 2.0)
    op("loss", "eager channels_last", 1.0)
    op("ours alone", "liteseg cuda", 2.0)
    loss = {"op": "upsample_cross_entropy", "mode": "fwd+bwd"}
    op("l", "liteseg triton", 1.0, **loss, **{"peak MB": 5.0})
    op("l", "eager", 1.8, **loss, **{"peak MB": 100.0})
    rows.append(tmp_path / "d-sections.csv", SECTION, {"section": "ops", "status": "partial", "left": 4})
    rows.append(
        tmp_path / "d-checks.csv", CHECK, {"check": "graph", "case": "x", "status": "failed", "detail": "a | b"}
    )
    text = report.write(tmp_path, "d").read_text()
    assert text.startswith("# GPU day: Test Device 1\n")
    assert "3 cases were measured on both sides, 1 of them against compiled PyTorch too." in text
    assert "Of these 1 are at least 1.5 times as fast (the target). 1 of all are slower." in text
    assert "with its gradient: 0.05 to 0.05 of eager's (target 0.1)." in text
    losses = text.split("### Losses")[1].split("### All")[0]
    assert "| upsample_argmax | fwd | loss | fp16 | cuda | 2 | eager channels_last | 1 | 0.50 (eager only) |" in losses
    assert "win" not in losses
    assert "| upsample_argmax | fwd | win 1024x2048 | fp16 | triton | 1 | compiled | 2 | 2.00 |" in text
    assert "wrong | error 0.7 |" in text
    assert "| graph, x | failed | a \\| b |" in text
    assert "| ops | partial |  |  |  | 4 |" in text
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_command_leaves_no_section_behind(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; from pathlib import Path; from benchmarks import gpu_day, rows;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); folder = Path(sys.argv[1]);"
        "place = rows.Sheet(folder / 'c.csv', rows.CHECK, rows.CHECK_KEY, folder / 'running.json');"
        "inner = 'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(100)';"
        "command = [sys.executable, '-c', inner, str(folder / 'pid')];"
        "gpu_day.supervise('info', command, place, folder, time.time() + 60)"
    )
    started = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=rows.ROOT)
    pid = tmp_path / "pid"
    for _ in range(300):
        if pid.exists() and pid.read_text():
            break
        time.sleep(0.1)
    started.terminate()
    assert started.wait(timeout=30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
