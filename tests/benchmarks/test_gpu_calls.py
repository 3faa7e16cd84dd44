"""The calls on a lent GPU machine, rehearsed in a reduced form (`python -m benchmarks.rehearsal` is the whole), and
what comes back on bad days of all kinds.

A compiler would build the emulator first, so the machine played here has none: Triton's interpreter and PyTorch stand
in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import archive, gpu_call, gpu_pack, rehearsal, rows
from benchmarks.rehearsal import Call, Machine
from liteseg.bench.record import read

TOOLS = ("bash", "cp", "dirname", "ls", "mkdir", "tee", "timeout", "unshare", "env", "nproc")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        place = shutil.which(name)
        if place is not None:
            (tools / name).symlink_to(place)
    made = Machine(tmp_path / "machine", sys.executable, str(tools))
    made.sync([])
    return made


def pack(folder: Path) -> Path:
    """What travels, without the compiled libraries, which take a minute to compress; a kernel made ahead."""
    kernel = folder / "kernel"
    kernel.mkdir()
    (kernel / "k.cubin").write_text("code")
    group = {"child_paths": {"k.cubin": "/elsewhere/k.cubin", "k.json": "/elsewhere/k.json"}}
    (kernel / "__grp__k.json").write_text(json.dumps(group))
    (kernel / "commit.txt").write_text("abcdef1\n")
    entries = [(f"build/gpu-day/triton-cache/KEY/{name}", kernel / name) for name in ("k.cubin", "__grp__k.json")]
    target = folder / "pack-short.tar.xz"
    assert gpu_pack.write([*entries, ("build/gpu-day/commit.txt", kernel / "commit.txt")], target)
    return target


def sections(machine: Machine) -> dict[str, dict[str, str]]:
    (file,) = machine.back("results/*-sections.csv")
    return {line["section"]: line for line in read(file)}


def in_order(call: Call, budget: float) -> None:
    assert rehearsal.faults(call, budget) == [], call.output
    assert sorted(call.returned) == ["gpu-day.tar.gz", "summary.md"]
    sizes = f"{call.returned}, {len(call.names)} files in the archive"
    print(f"{call.seconds:.0f} s, {call.busy:.0f} s computing; back: {sizes}")


def test_two_calls_run_to_their_end_and_bring_everything_back(machine: Machine, tmp_path: Path) -> None:
    carry = [pack(tmp_path)]
    assert machine.sync(carry) == []
    first = machine.call(1, "--dry-run", "--budget", "300", "ready", "networks")
    in_order(first, 300)
    assert first.code == 0, first.output
    assert "pack-short.tar.xz: " in first.output and "3 files" in first.output
    (file,) = machine.back("results/*-networks.csv")
    measured = [line for line in read(file) if line["p50"]]
    assert {line["provider"] for line in measured} >= {"liteseg auto graph", "eager channels_last"}
    assert all(line["status"] == "ok" and line["commit"] == "abcdef1" for line in measured)
    # Triton's cache names its files by the place where they lie now
    cache = machine.root / "build/gpu-day/triton-cache/KEY"
    children = json.loads((cache / "__grp__k.json").read_text())["child_paths"]
    assert children == {"k.cubin": str(cache / "k.cubin")}
    # the sources are brought anew; the second call goes on where the first one ended
    assert machine.sync(carry) == []
    second = machine.call(2, "--dry-run", "--budget", "300", "sanitizer")
    in_order(second, 300)
    assert second.code == 0, second.output
    assert "pack-short.tar.xz is unpacked" in second.output
    assert {"ready", "networks", "sanitizer"} == set(sections(machine))
    assert machine.back("results/*-networks.csv") and machine.sync(carry) == []


PLANTED = """
import os as _os, time as _time
_ready, _READY = _make, 3.0
def _make(day, key, *rest):
    if key["provider"] == "eager channels_last":
        _time.sleep(1000)
    if key["provider"] == "eager channels_last graph":
        _os.abort()
    if key["provider"] == "bad":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return _ready(day, key, *rest)
PEERS = ("bad", *PEERS)
"""


def plant(machine: Machine, name: str, before: str = "", after: str = "") -> None:
    path = machine.root / "benchmarks" / name
    head, future, rest = path.read_text().partition("from __future__ import annotations\n")
    path.write_text(head + future + before + rest + after)


def test_a_hang_a_crash_a_device_fault_and_a_missing_package(machine: Machine) -> None:
    plant(machine, "race.py", after=PLANTED)
    plant(
        machine,
        "day.py",
        after="\n_whole = Day.make\n\ndef _half(*a):\n    import dataclasses\n    d = _whole(*a)\n"
        "    return dataclasses.replace(d, dtypes=d.dtypes[:1])\n\nDay.make = staticmethod(_half)\n",
    )
    plant(machine, "parity.py", before="import a_package_that_is_not_here\n")
    call = machine.call(1, "--dry-run", "--budget", "300", "parity", "networks")
    in_order(call, 300)
    assert call.code == 1
    found = sections(machine)
    assert "No module named 'a_package_that_is_not_here'" in found["parity"]["detail"]
    (file,) = machine.back("results/*-networks.csv")
    lines = {line["provider"]: line for line in read(file)}
    assert {name: line["status"] for name, line in lines.items()} == {
        "bad": "failed",
        "eager channels_last": "timeout",
        "eager channels_last graph": "crashed",
        "liteseg auto graph": "ok",
        "liteseg in turns": "failed",
    }
    assert float(lines["liteseg auto graph"]["p50"]) > 0
    page = (machine.out / "summary.md").read_text()
    assert "took longer than its limit" in page and "illegal memory access" in page


def test_out_of_time(machine: Machine) -> None:
    call = machine.call(1, "--dry-run", "--budget", "10.5", "networks", "switches")
    in_order(call, 300)
    assert {line["status"] for line in sections(machine).values()} <= {"partial", "failed"}
    assert "left" in (machine.out / "summary.md").read_text()


def test_without_torch(machine: Machine) -> None:
    (machine.root / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    call = machine.call(1, "--dry-run")
    assert call.code == 1
    assert "torch does not start: ImportError: libcudart.so.13" in call.output
    assert "logs/no-device.txt" in call.names and list(call.returned) == ["gpu-day.tar.gz"]


def test_what_is_there_when_the_call_is_killed(machine: Machine) -> None:
    machine.out.mkdir(exist_ok=True)
    variables = {"PATH": machine.path, "HOME": str(machine.home), "OUT": str(machine.out), "GPU_PYTHON": machine.python}
    command = ["bash", "benchmarks/gpu_call_1.sh", "--dry-run", "counters", "switches"]
    process = subprocess.Popen(
        command, cwd=machine.root, env=variables, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            if (machine.out / "summary.md").exists():
                break
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # sections run in sessions of their own
        for place in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if place.resolve() == machine.root.resolve():
                    os.kill(int(place.parent.name), signal.SIGKILL)
    assert "logs/counters.txt" in machine._names()
    assert "counters" in sections(machine)


def test_a_pack_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "pack.tar.xz"
    source.write_text("one")
    assert gpu_pack.write([("source", source)], target)
    stamp = target.stat().st_mtime_ns
    assert not gpu_pack.write([("source", source)], target)
    assert target.stat().st_mtime_ns == stamp
    source.write_text("two")
    assert gpu_pack.write([("source", source)], target)
    monkeypatch.setattr(gpu_pack, "LIMIT", 10)
    source.write_text("three")
    with pytest.raises(SystemExit, match="expected at most 10 bytes"):
        gpu_pack.write([("source", source)], target)


AHEAD = """
import torch
from benchmarks import warm
warm.compile_only()
import liteseg_kernels as lk
with lk.use_backend("triton", strict=True):
    lk.functional.upsample_argmax(torch.randn(1, 5, 4, 6), (8, 12))
"""


def test_what_is_compiled_ahead_is_found_at_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile launchers")
    manager = pytest.importorskip("triton.runtime.cache").FileCacheManager
    here, there = tmp_path / "here", tmp_path / "there"
    variables = {**os.environ, "TRITON_CACHE_DIR": str(here), "TRITON_INTERPRET": "0", "PYTHONPATH": str(rows.ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", AHEAD]
    done = subprocess.run(command, cwd=rows.ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "pack-short.tar.xz"
    entries = [(f"there/{p.relative_to(here)}", p) for p in sorted(here.rglob("*")) if p.name.endswith(gpu_pack.LOADED)]
    assert gpu_pack.write(entries, target)
    archive.unpack(target, tmp_path)
    shutil.rmtree(here)
    (kernel,) = there.glob("*/upsample_argmax_kernel.cubin")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(there))
    assert not manager(kernel.parent.name).get_group("upsample_argmax_kernel.json")
    gpu_call.relocate(there)
    found = manager(kernel.parent.name).get_group("upsample_argmax_kernel.json")
    assert found == {path.name: str(path) for path in (kernel, kernel.with_suffix(".json"))}
