"""setup.py: what it does with parts missing, without ninja, and a second time."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from .project import TINY_SOURCE, build_info, copy, python

pytestmark = pytest.mark.build

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy(tmp_path / "project", tiny=True)


def in_place(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(project, "setup.py", "build_ext", "--inplace", **environment)


def without_compiler(project: Path) -> dict[str, str]:
    (project / "empty").mkdir(exist_ok=True)
    return {"PATH": str(project / "empty")}


def test_strict_without_a_compiler_is_an_error(project: Path) -> None:
    done = in_place(project, LITESEG_BUILD="cpu", **without_compiler(project))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: LITESEG_BUILD=cpu: cannot build _C: no C++ compiler")
    assert "Traceback" not in done.stderr


def test_auto_without_a_compiler_goes_on_loudly(project: Path) -> None:
    done = in_place(project, **without_compiler(project))
    assert done.returncode == 0, done.stderr
    assert "built WITHOUT _C: no C++ compiler: g++ or c++ or clang++ is not on PATH" in done.stderr
    assert "built WITHOUT _C_cuda: " in done.stderr
    skipped = build_info(project)["SKIPPED"]
    assert isinstance(skipped, dict) and set(skipped) == {"_C", "_C_cuda"}


def test_no_torch_gives_the_pure_wheel(project: Path) -> None:
    nowhere = {"LITESEG_TORCH_DIR": str(project / "nowhere")}
    done = python(project, "setup.py", "-q", "bdist_wheel", "-d", "out", **nowhere)
    assert done.returncode == 0, done.stderr
    assert [path.name.split("-", 2)[2] for path in (project / "out").iterdir()] == ["py3-none-any.whl"]
    assert f"no torch with stable-ABI headers (looked in {project / 'nowhere'})" in done.stderr
    assert "--no-build-isolation" in done.stderr and "LITESEG_TORCH_DIR" in done.stderr
    info = build_info(project / "build/lib")
    assert info["TORCH"] is None and info["SOURCES"] == {}
    assert in_place(project, LITESEG_BUILD="cpu", **nowhere).returncode != 0


def test_an_old_torch_is_refused(project: Path) -> None:
    headers = project / "old/include/torch/csrc/stable"
    headers.mkdir(parents=True)
    (headers / "library.h").touch()
    (project / "old/version.py").write_text("__version__ = '2.4.1+cu124'\n")
    done = in_place(project, LITESEG_BUILD="cpu", LITESEG_TORCH_DIR=str(project / "old"))
    assert done.returncode != 0
    assert "torch 2.4.1+cu124" in done.stderr and "too old: expected >= 2.11" in done.stderr


@needs_compiler
def test_strict_without_nvcc_is_an_error(project: Path) -> None:
    done = in_place(project, LITESEG_BUILD="cuda", CUDA_HOME=str(project / "nowhere"))
    assert done.returncode != 0
    assert "LITESEG_BUILD=cuda: cannot build _C_cuda: no nvcc" in done.stderr and "CUDA_HOME" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("LITESEG_BUILD", "fast", "expected one of auto, cpu, cuda, none, got 'fast'"),
        pytest.param("MAX_JOBS", "many", "expected a positive number, got 'many'", marks=needs_compiler),
    ],
)
def test_wrong_settings_are_named(project: Path, name: str, value: str, text: str) -> None:
    done = in_place(project, **{"LITESEG_BUILD": "cpu", name: value})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"{name}: {text}"


@needs_compiler
def test_second_build_compiles_only_what_changed(project: Path) -> None:
    def value() -> int:
        # dlopen returns the mapping it has for a path, so every look is at a copy of its own
        fresh = project / f"look{len(list(project.glob('look*')))}.so"
        shutil.copy(project / "liteseg_kernels/_C.abi3.so", fresh)
        return int(ctypes.CDLL(str(fresh)).tiny())

    first = in_place(project, LITESEG_BUILD="cpu")
    assert first.returncode == 0, first.stdout + first.stderr
    assert value() == 1
    assert "no work to do" in in_place(project, LITESEG_BUILD="cpu").stdout
    (project / "csrc/common/tiny.h").write_text("#define TINY 2\n")
    assert in_place(project, LITESEG_BUILD="cpu").returncode == 0
    assert value() == 2


@needs_compiler
def test_without_ninja_a_plain_loop_builds_the_same(project: Path) -> None:
    hide = """
import runpy, shutil, sys
which = shutil.which
shutil.which = lambda name, *a, **k: None if name == "ninja" else which(name, *a, **k)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    done = python(project, "-c", hide, LITESEG_BUILD="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(project.rglob("build.ninja"))
    assert ctypes.CDLL(str(project / "liteseg_kernels/_C.abi3.so")).tiny() == 1


@needs_compiler
def test_compiler_errors_are_shown(project: Path) -> None:
    (project / "csrc/torch/tiny.cpp").write_text(TINY_SOURCE + "int wrong = no_such_name;\n")
    done = in_place(project)
    assert done.returncode != 0
    assert "no_such_name" in done.stdout + done.stderr
    assert "the kernels did not compile" in done.stderr and "LITESEG_BUILD=none" in done.stderr


@needs_compiler
def test_a_library_left_out_later_is_removed(project: Path) -> None:
    assert in_place(project, LITESEG_BUILD="cpu").returncode == 0
    assert (project / "liteseg_kernels/_C.abi3.so").is_file()
    assert in_place(project, LITESEG_BUILD="none").returncode == 0
    assert not (project / "liteseg_kernels/_C.abi3.so").exists()
    assert build_info(project)["SKIPPED"] == {"_C": "LITESEG_BUILD=none", "_C_cuda": "LITESEG_BUILD=none"}


@needs_compiler
def test_a_kernel_is_compiled_for_each_instruction_set(project: Path) -> None:
    (project / "csrc/engine/kernels/bf16").mkdir(parents=True)
    for folder in ("kernels", "kernels/bf16"):
        (project / f"csrc/engine/{folder}/tiny.cpp").write_text("")
    done = in_place(project, LITESEG_BUILD="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (next(project.rglob("build.ninja"))).read_text().split("\nbuild ")
    flags = {
        call.split(":")[0]: {word for word in call.split() if word.startswith(("-m", "-DLITESEG"))} for call in calls
    }
    objects = next(call for call in calls if call.startswith("_C.abi3.so")).splitlines()[0].split()[2:]
    # what is compiled for every processor comes first
    assert objects[0] == "_C/torch.tiny.cpp.o" and flags[objects[0]] == set()
    assert objects[1] == "_C/engine.kernels.tiny.cpp.scalar.o"
    assert flags[objects[1]] == {"-DLITESEG_ISA=scalar", "-DLITESEG_SIMD=generic"}
    if platform.machine() != "x86_64":
        return
    assert objects[2:] == [
        "_C/engine.kernels.tiny.cpp.avx2.o",
        "_C/engine.kernels.tiny.cpp.avx512.o",
        "_C/engine.kernels.bf16.tiny.cpp.avx512bf16.o",
    ]
    avx2, avx512, bf16 = (flags[name] for name in objects[2:])
    assert avx2 == {"-DLITESEG_ISA=avx2", "-DLITESEG_SIMD=avx2", "-mavx2", "-mfma", "-mf16c"}
    assert {"-DLITESEG_ISA=avx512", "-DLITESEG_SIMD=avx512", "-mavx512f"} < avx512
    assert bf16 - avx512 == {"-DLITESEG_ISA=avx512bf16", "-mavx512bf16", "-mavx512vnni"}


@pytest.mark.slow
@needs_compiler
def test_isolated_build_finds_the_installed_torch(project: Path) -> None:
    done = python(project, "-m", "pip", "wheel", "-v", ".", "--no-deps", "-w", "out", LITESEG_BUILD="cpu")
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("pip cannot fetch setuptools here, which an isolated build needs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-cp310-abi3-linux_" in next((project / "out").iterdir()).name
    assert build_info(next((project / "build").glob("lib*")))["TORCH"] == torch.__version__
