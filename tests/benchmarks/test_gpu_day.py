"""The GPU day's script without a GPU: a dry run of its cheap sections, and each promise it makes about a bad day."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import archive, gpu_day, launches, parity, plans, race, report, rows, runners, supervisor
from benchmarks.day import Day
from benchmarks.rows import CHECK, CHECK_KEY, SECTION, SPEED, Outcome, Row, Sheet
from liteseg.bench import registry, shapes
from liteseg.bench.record import Skip, read
from liteseg_kernels import _dispatch
from tests.kernels import suite
from tests.worlds import HALF_TOO, World

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
    return [(line["check"], line["status"]) for line in read(folder / "checks.csv")]


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
    lines = read(file)
    assert [(line["op"], line["status"]) for line in lines] == [("copy", "ok")] * 2
    assert all(float(line["GB/s"]) > 0 and line["torch"] == torch.__version__ for line in lines)
    os.environ.pop(rows.ENVIRONMENT_VARIABLE)
    rows.environment.cache_clear()
    assert gpu_day.main(call) == 0
    assert read(file) == lines
    assert "2 ok, 0 failed, 0 skipped, 0 left" in capfd.readouterr().out
    # one archive and its summary come back
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu-day.tar.gz", "summary.md"]
    assert "| copy, 4 GiB | bytes |" in (tmp_path / "out/summary.md").read_text()
    names = archive.unpack(tmp_path / "out/gpu-day.tar.gz", tmp_path / "back")
    assert "logs/ceilings.txt" in names and f"results/{file.name}" in names
    assert (tmp_path / f"back/results/{file.name}").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["parity", "speed"], "SECTION: expected one of ready, ceilings, parity,"),
        (["--budget", "0"], "--budget: expected a number above 0, got 0"),
        (["--plan", "short", "--call", "3"], "--call: expected one of 1, 2, got 3"),
        (["--call", "1"], "--call: expected one of none, got 1"),
    ],
)
def test_wrong_arguments_are_named(given: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main(given)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_day.main(["ready", "--logs", str(tmp_path)]) == 2
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
    assert read(tmp_path / "checks.csv")[0]["detail"] == "ValueError: this is wrong"


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


def supervised(tmp_path: Path, script: str, seconds: float = 60.0) -> supervisor.Result:
    place = checks(tmp_path)
    command = [sys.executable, "-c", SECTION_SCRIPT + script, str(tmp_path), str(tmp_path)]
    return supervisor.supervise("parity", command, place, tmp_path, time.time() + seconds)


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
    assert "exit code -6: here" in read(tmp_path / "checks.csv")[0]["detail"]


def test_a_section_goes_on_in_a_fresh_process_after_a_device_fault(tmp_path: Path) -> None:
    result = supervised(
        tmp_path,
        f"""
outcome(failed=1, ok=5)
if not (folder / "second").exists():
    (folder / "second").write_text("")
    sys.exit({supervisor.DEVICE_FAULT})
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


SECTIONS = [(plan, section) for plan, held in plans.PLANS.items() for section in held.sections]


@pytest.mark.parametrize(("plan", "section"), SECTIONS, ids=lambda x: getattr(x, "name", x))
def test_rows_have_names_of_their_own(plan: str, section: plans.Section, tmp_path: Path) -> None:
    # rows with equal keys would count as run once the first of them is
    day = dataclasses.replace(Day.make(plan, False, tmp_path, tmp_path), sizes=((360, 640),))
    module, _, function = section.place.partition(".")
    key = rows.sheet(section.sheet, section.name, tmp_path, tmp_path).key
    found = list(getattr(importlib.import_module(f"benchmarks.{module}"), function)(day))
    assert len({tuple(row.key.get(name, "") for name in key) for row in found}) == len(found) > 0
    budget = plans.PLANS[plan].budget(section.call)
    assert all(set(row.key) <= set(key) and row.cost < min(row.limit, budget - 10) for row in found)


def test_a_call_of_the_short_plan_fits_into_what_can_be_had() -> None:
    short = plans.PLANS["short"]
    assert short.calls() == (1, 2)
    # 900 s with the machine's start, 600 s a command, and gpu_call's own end
    assert sum(short.budget(call) + 15 for call in short.calls()) + 120 <= 900
    assert sum(plans.PLANS["train"].budget(call) + 15 for call in (1, 2)) + 120 <= 900
    assert all(plan.budget(call) + 15 < 600 for plan in plans.PLANS.values() for call in (1, 2))
    # what one wants to know first comes first
    names = [section.name for section in short.sections]
    assert names[:2] == ["ready", "networks"] and names[-1] == "sanitizer"


def test_a_row_may_write_lines_of_its_own(tmp_path: Path) -> None:
    lines = [{"case": "first", "detail": "one"}, {"case": "second", "status": "failed"}]
    outcome, _ = run([row("a", lambda: {"lines": list(lines), "detail": "both"})], tmp_path)
    found = read(tmp_path / "checks.csv")
    assert [(x["check"], x["case"], x["status"]) for x in found] == [
        ("a", "first", ""),
        ("a", "second", "failed"),
        ("a", "c", "ok"),
    ]
    assert outcome.ok == 1


def test_contestants_take_turns_and_one_that_faults_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day.make("short", True, tmp_path, tmp_path)
    order: list[str] = []
    monkeypatch.setattr(runners, "expected", lambda *_: torch.zeros(1))
    monkeypatch.setattr(runners, "inputs", lambda *_: [torch.zeros(1)])

    def make(day: Day, key: dict[str, str], *_: Any) -> Any:
        name = key["provider"]
        if name == "bad":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if name == "none":
            raise ValueError("cannot be had")
        return race._Runner(key, lambda: order.append(name), torch.zeros(1), {"status": "ok"})

    monkeypatch.setattr(race, "_make", make)
    monkeypatch.setattr(race, "PEERS", ("a", "bad", "none", "b"))
    monkeypatch.setattr(race, "ours", lambda day: ())
    place = rows.sheet("networks", "networks", tmp_path, tmp_path)
    given = [x for x in race.networks(day) if x.key["dtype"] == "fp16"]
    with pytest.raises(rows.DeviceFault):
        rows.run_rows(given, place, time.time() + 60, "", lambda outcome: None)
    assert [(x["provider"], x["status"]) for x in read(place.path)] == [("bad", "failed")]
    assert not place.marker.exists()
    rows.run_rows(given, place, time.time() + 60, "", lambda outcome: None)
    found = {x["provider"]: x for x in read(place.path)[1:]}
    assert order == ["a", "b"] * 4
    assert {name: x["status"] for name, x in found.items()} == {
        "a": "ok",
        "b": "ok",
        "none": "failed",
        "liteseg in turns": "failed",
    }
    assert float(found["a"]["p50"]) >= 0 and found["liteseg in turns"]["detail"].endswith("not ok: bad, none")


def test_kernels_belong_to_the_op_that_ran_then() -> None:
    ops = [
        launches.Span("stem conv2d", 0, 10),
        launches.Span("stem.activation relu", 10, 20),
        launches.Span("x", 30, 40),
    ]
    kernels = [
        launches.Span("k3", 31, 35),
        launches.Span("k1", 2, 6),
        launches.Span("k2", 12, 13),
        launches.Span("k4", 22, 24),
    ]
    found = launches.attribute(ops, kernels)
    assert found == [("stem conv2d", "k1", 4), ("stem.activation relu", "k2", 1), ("", "k4", 2), ("x", "k3", 4)]
    slower = [(layer, kernel, 3 * us) for layer, kernel, us in found]
    predicted = {("stem", 0): (2.0, "s"), ("stem", 2): (0.5, "s"), ("x", 0): (8.0, "s"), ("network", 0): (44.0, "s")}
    lines = launches.table([slower, found[:2], found, found], predicted)
    assert [(x["launch"], x["layer"], x["us"], x.get("predicted us")) for x in lines] == [
        ("1", "stem conv2d", 4, None),
        ("2", "stem.activation relu", 1, 0.5),
        ("3", "", 2, None),
        ("4", "x", 4, 8.0),
        ("sum", "stem", 5, 2.0),
        ("sum", "network", 11, 44.0),
    ]
    assert lines[4]["measured/predicted"] == 2.5


def test_predictions_are_of_layers_that_there_are() -> None:
    network = "liteseg_mobilenetv2"
    places = {layer.layer for layer in shapes.inference(network, (360, 640))}
    found = launches.predictions(network, (360, 640), "liteseg cuda")
    # torch's own ops of a layer, and repeated calls, are not in the list of ops
    others = {layer for layer, _ in found} - places
    assert others == {"network", "backbone.stem", "backbone.last"} | {f"backbone.blocks.{i}" for i in (5, 8, 9, 12, 15)}
    assert places <= {layer for layer, _ in found}
    sums = sum(us for (layer, step), (us, _) in found.items() if step == 0 and layer != "network")
    assert sums == pytest.approx(found["network", 0][0], abs=1)


def test_outcomes_of_parity_by_file_and_backend(tmp_path: Path) -> None:
    record = tmp_path / "parity.jsonl"
    outcomes = [
        ("tests/kernels/test_daspp.py::test_forward[gpu-cuda-a]", "passed", ""),
        ("tests/kernels/test_daspp.py::test_forward[gpu-cuda-b]", "failed", "off by 3"),
        ("tests/kernels/test_daspp.py::test_forward[gpu-cuda-b]", "passed", ""),
        ("tests/kernels/test_daspp.py::test_forward[gpu-triton-a]", "passed", ""),
        ("tests/kernels/test_tf32.py::test_tf32[gpu-triton]", "skipped", "no"),
    ]
    text = "".join(
        json.dumps({"test": test, "outcome": outcome, "reason": reason, "seconds": 1}) + "\n"
        for test, outcome, reason in outcomes
    )
    record.write_text(text + '{"test": "cut o')
    found = parity.summarise(parity.read(record))
    assert [(x["case"], x["backend"], x["status"], x["detail"]) for x in found] == [
        ("daspp", "cuda", "failed", "1 passed, 1 failed, 0 skipped; test_forward[gpu-cuda-b]: off by 3"),
        ("daspp", "triton", "ok", "1 passed, 0 failed, 0 skipped"),
        ("tf32", "triton", "skipped", "0 passed, 0 failed, 1 skipped; no"),
    ]


def test_a_short_day_keeps_every_dtype_and_layout_of_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    case = suite.Case("any", lambda generator: {})
    for name in ("gpu-cuda", "gpu-triton"):
        here = World(name, name[4:], "cuda", HALF_TOO)
        monkeypatch.delenv("LITESEG_PARITY", raising=False)
        whole = suite.combinations(here, case, HALF_TOO, suite.LAYOUTS)
        monkeypatch.setenv("LITESEG_PARITY", "each")
        each = suite.combinations(here, case, HALF_TOO, suite.LAYOUTS)
        assert len(whole) == 15 and len(each) == 5 and set(each) <= set(whole)
        assert {dtype for dtype, _ in each} == set(HALF_TOO) and {layout for _, layout in each} == set(suite.LAYOUTS)
    # what "auto" chooses is one of these
    assert {"gpu-cuda", "gpu-triton"} < set(suite.worlds_of("daspp")) and "gpu" not in suite.worlds_of("daspp")


PARITY_TESTS = """
import time, pytest
@pytest.mark.parametrize("name", ["emulator-hangs", "emulator-faults", "interpreter-a", "interpreter-b", "emulator-c"])
def test_it(name):
    if name == "emulator-hangs":
        time.sleep(100)
    if name == "emulator-faults":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


def test_a_fault_or_a_hang_of_one_parity_test_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(PARITY_TESTS)
    record = tmp_path / "parity.jsonl"
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-p", "benchmarks.parity_plugin", "-n", "1", "-q"]
    command += ["--dist", "worksteal", "--max-worker-restart", "9", "-c", os.devnull, "-p", "no:cacheprovider"]
    # a worker of this very run would take that pytest for a worker too
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    variables |= {"LITESEG_PARITY_RECORD": str(record), "LITESEG_PARITY_LIMIT": "2"}
    variables["PYTHONPATH"] = str(rows.ROOT)
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    found = {x["test"].split("[")[1]: x for x in parity.read(record)}
    assert {name: x["outcome"] for name, x in found.items()} == {
        "emulator-hangs]": "failed",
        "emulator-faults]": "failed",
        "emulator-c]": "passed",
        "interpreter-a]": "passed",
        "interpreter-b]": "passed",
    }, done.stdout
    assert "crashed" in found["emulator-hangs]"]["reason"]


def test_an_archive_is_cut_into_parts_and_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PART", 4000)
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "deep/deeper").mkdir(parents=True)
    noise = os.urandom(9000)
    (source / "deep/deeper/noise").write_bytes(noise)
    (source / "huge.ckpt").write_bytes(os.urandom(20000))
    page = tmp_path / "page.md"
    page.write_text("# page")
    out.mkdir()
    (out / "gpu-day.tar.gz").write_text("of an earlier call")
    written = archive.publish(out, {"results": source}, page, large=(".ckpt",))
    names = [path.name for path in written]
    assert names == ["gpu-day.tar.gz.00", "gpu-day.tar.gz.01", "gpu-day.tar.gz.02", "summary.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "files ending in .ckpt stayed behind" in (out / "summary.md").read_text()
    whole = tmp_path / "whole.tar.xz"
    whole.write_bytes(b"".join(path.read_bytes() for path in written[:3]))
    assert archive.unpack(whole, tmp_path / "back") == ["results/deep/deeper/noise"]
    assert (tmp_path / "back/results/deep/deeper/noise").read_bytes() == noise
    with pytest.raises(OSError, match="publish: folders: expected at most"):
        archive.publish(out, {"results": source}, page)


def test_an_archive_puts_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as held:
        held.add(tmp_path / "a", "../escaped")
    with pytest.raises(ValueError, match="unpack: archive: expected files below its folder"):
        archive.unpack(tmp_path / "bad.tar.xz", tmp_path / "in")
    assert not (tmp_path / "escaped").exists()


def test_a_network_is_measured_without_what_small_grids_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITESEG_EARLY_LAUNCH", "1")
    monkeypatch.delenv("LITESEG_CLUSTERS", raising=False)
    seen = []
    for provider in ("liteseg cuda graph", *runners.WITHOUT):
        with runners.switched_off(provider):
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
        "import signal, sys, time; from pathlib import Path; from benchmarks import rows, supervisor;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); folder = Path(sys.argv[1]);"
        "place = rows.Sheet(folder / 'c.csv', rows.CHECK, rows.CHECK_KEY, folder / 'running.json');"
        "inner = 'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(100)';"
        "command = [sys.executable, '-c', inner, str(folder / 'pid')];"
        "supervisor.supervise('info', command, place, folder, time.time() + 60)"
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
