"""setup.py: what it does with parts missing, and a second time."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from .project import ROOT, TINY_SOURCE, build_info, copy, environment, python

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


NONE = "error: LITESEG_BUILD=none installs without compiled kernels"


@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_without_a_compiler_the_build_fails_and_says_what_to_install(project: Path, mode: str) -> None:
    done = in_place(project, LITESEG_BUILD=mode, **without_compiler(project))
    assert done.returncode != 0
    reason, none = done.stderr.splitlines()[-2:]
    assert reason.startswith(f"error: LITESEG_BUILD={mode}: cannot build _C: no C++ compiler: g++ or c++ or clang++")
    assert "install one (g++ >= 9) or set CXX" in reason and none.startswith(NONE)
    assert "Traceback" not in done.stderr
    assert not (project / "liteseg_kernels/_build_info.py").exists()


def test_pip_shows_the_remedy_of_a_compiler_that_fails(project: Path) -> None:
    command = ["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "out"]
    done = python(project, *command, CXX="false")
    assert done.returncode != 0 and not list(project.glob("out/*"))
    shown = done.stdout + done.stderr
    assert "false --version failed with exit code 1; install a C++ compiler that works (g++ >= 9) or set CXX" in shown
    assert NONE in shown


def test_without_torch_the_build_fails_with_the_commands_that_work(project: Path) -> None:
    nowhere = {"LITESEG_TORCH_DIR": str(project / "nowhere")}
    done = python(project, "setup.py", "-q", "bdist_wheel", "-d", "out", **nowhere)
    assert done.returncode != 0 and not (project / "out").exists()
    assert f"no torch with stable-ABI headers (looked in {project / 'nowhere'}); install torch >= 2.11" in done.stderr
    for remedy in ("`pip install --no-build-isolation .` (with uv: `uv pip install ...`)", NONE):
        assert remedy in done.stderr
    # what needs no kernels goes on
    assert python(project, "setup.py", "-q", "--version", **nowhere).returncode == 0


def test_none_means_the_pure_wheel(project: Path) -> None:
    done = python(project, "setup.py", "-q", "bdist_wheel", "-d", "out", LITESEG_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert [path.name.split("-", 2)[2] for path in (project / "out").iterdir()] == ["py3-none-any.whl"]
    info = build_info(project / "build/lib")
    assert info["TORCH"] is None and info["SOURCES"] == {}


@needs_compiler
@pytest.mark.parametrize("place", ["active", "beside"])
def test_a_build_environment_of_its_own_finds_the_torch_around_it(project: Path, tmp_path: Path, place: str) -> None:
    """As uv builds: another interpreter, the active environment on PATH only, or not active and in .venv."""
    around = project / ".venv" if place == "beside" else tmp_path / "active"
    package = Path("lib/python3.14/site-packages/torch")
    (around / package).mkdir(parents=True)
    (around / package / "version.py").write_text("__version__ = '2.99.0'\n")
    for folder in ("include", "lib"):
        (around / package / folder).symlink_to(Path(torch.__file__).parent / folder)
    # of the standard library and setuptools only, as in an isolated build
    bare = tmp_path / "bare"
    venv.create(bare)
    (bare / "site").mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (bare / "site" / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    path = f"{around / 'bin'}{os.pathsep}{os.environ['PATH']}" if place == "active" else os.environ["PATH"]
    build = [bare / "bin/python", "setup.py", "-q", "build_ext", "--inplace"]
    settings = environment(PATH=path, PYTHONPATH=str(bare / "site"), LITESEG_BUILD="cpu")
    done = subprocess.run(build, cwd=project, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert build_info(project)["TORCH"] == "2.99.0"


def test_an_old_setuptools_is_named(project: Path) -> None:
    old = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = python(project, "-c", old)
    assert done.returncode != 0
    assert done.stderr.startswith("error: setuptools 65.5.0 is too old: expected >= 77; `pip install -U setuptools`")
    assert 'requires = ["setuptools>=77"]' in (project / "pyproject.toml").read_text()


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
    assert "0 of 1 objects to compile" in in_place(project, LITESEG_BUILD="cpu").stdout
    (project / "csrc/common/tiny.h").write_text("#define TINY 2\n")
    assert in_place(project, LITESEG_BUILD="cpu").returncode == 0
    assert value() == 2


def compiled(done: subprocess.CompletedProcess[str]) -> int:
    """How many compilers a build called."""
    assert done.returncode == 0, done.stdout + done.stderr
    return len(re.findall(r" -c .* -o ", done.stdout))


@needs_compiler
def test_every_way_of_building_takes_the_objects_of_the_others(project: Path) -> None:
    assert compiled(in_place(project, LITESEG_BUILD="cpu")) == 1
    for way in ("build_editable", "build_wheel"):
        code = f"from setuptools import build_meta; build_meta.{way}('.')"
        assert compiled(python(project, "-c", code, LITESEG_BUILD="cpu")) == 0
    # the flags are another's, and the first ones' objects stay
    assert compiled(in_place(project, LITESEG_BUILD="cpu", DEBUG="1")) == 1
    assert compiled(in_place(project, LITESEG_BUILD="cpu", CXX="g++ -g1")) == 1
    assert compiled(in_place(project, LITESEG_BUILD="cpu")) == 0
    assert [path.name for path in (project / "build").iterdir() if path.name.startswith("temp")] == []


@needs_compiler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_a_launcher_and_flags_in_front_of_and_behind_the_compiler(project: Path) -> None:
    (project / "csrc/cuda").mkdir()
    shutil.copy(project / "csrc/torch/tiny.cpp", project / "csrc/cuda/tiny.cu")
    launcher = project / "launch"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    settings = {"LITESEG_BUILD": "cuda", "LITESEG_CUDA_ARCHS": "90", "CXX": f"{launcher} g++ -DTINY_FLAG=1"}
    (project / "csrc/common/tiny.h").write_text("#if TINY_FLAG == 1\n#define TINY 3\n#endif\n")
    done = in_place(project, **settings)
    assert compiled(done) == 2
    assert f"{launcher} g++ -DTINY_FLAG=1 -c" in done.stdout and "-ccbin g++ -Xcompiler -DTINY_FLAG=1 -c" in done.stdout
    for name in ("_C", "_C_cuda"):
        assert ctypes.CDLL(str(project / f"liteseg_kernels/{name}.abi3.so")).tiny() == 3


@needs_compiler
def test_an_interrupted_compiler_leaves_no_object(project: Path) -> None:
    """Killed when it has written something: the next build compiles again."""
    compiler = project / "compiler"
    compiler.write_text('#!/bin/sh\ng++ "$@" || exit\n[ ! -e die ] || case " $* " in *" -c "*) kill -9 $$;; esac\n')
    compiler.chmod(0o755)
    (project / "die").touch()
    settings = {"LITESEG_BUILD": "cpu", "CXX": str(compiler)}
    done = in_place(project, **settings)
    assert done.returncode != 0 and "the kernels did not compile" in done.stderr
    assert list(project.rglob("*tiny.cpp.o"))
    (project / "die").unlink()
    assert compiled(in_place(project, **settings)) == 1


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
    assert build_info(project)["SKIPPED"] == dict.fromkeys(("_C", "_C_cuda", "_watch"), "LITESEG_BUILD=none")


@needs_compiler
def test_without_pythons_headers_the_comparison_is_left_to_python(project: Path, tmp_path: Path) -> None:
    """Said where it is built, and not an error: all works without."""
    shutil.copytree(ROOT / "csrc/python", project / "csrc/python")
    assert in_place(project, LITESEG_BUILD="cpu").returncode == 0
    assert (project / "liteseg_kernels/_watch.abi3.so").is_file() and "_watch" not in build_info(project)["SKIPPED"]
    setup = (project / "setup.py").read_text()
    assert 'sysconfig.get_path("include")' in setup
    (project / "setup.py").write_text(setup.replace('sysconfig.get_path("include")', repr(str(tmp_path))))
    done = in_place(project, LITESEG_BUILD="cpu")
    assert done.returncode == 0, done.stderr
    assert not (project / "liteseg_kernels/_watch.abi3.so").exists()
    assert f"no Python.h in {tmp_path}" in build_info(project)["SKIPPED"]["_watch"]


CROSS = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(shutil.which(CROSS) is None or platform.machine() == "aarch64", reason=f"no {CROSS} on PATH")
def test_a_cross_compiler_makes_a_wheel_for_its_machine(project: Path) -> None:
    (project / "csrc/engine/kernels").mkdir()
    (project / "csrc/engine/kernels/tiny.cpp").write_text("")
    done = python(project, "setup.py", "-q", "bdist_wheel", "-d", "out", LITESEG_BUILD="cpu", CXX=CROSS)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (project / "out").iterdir()
    assert wheel.name.endswith("-cp310-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        # e_machine of ELF
        assert archive.read("liteseg_kernels/_C.abi3.so")[18:20] == b"\xb7\x00"
    calls = re.findall(r"-DLITESEG_ISA=(\w+)", done.stdout)
    assert calls == ["scalar", "neon"]
    for mode, said in (("auto", "compiles for aarch64: expected a wheel, got a build in place"), ("cuda", "only")):
        done = in_place(project, LITESEG_BUILD=mode, CXX=CROSS)
        assert done.returncode != 0 and said in done.stderr, done.stderr


@needs_compiler
def test_a_kernel_is_compiled_for_each_instruction_set(project: Path) -> None:
    (project / "csrc/engine/kernels/bf16").mkdir(parents=True)
    for folder in ("kernels", "kernels/bf16"):
        (project / f"csrc/engine/{folder}/tiny.cpp").write_text("")
    done = in_place(project, LITESEG_BUILD="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [line.split() for line in done.stdout.splitlines() if line.startswith("[")]
    flags = {
        call[call.index("-o") + 1]: {word for word in call if word.startswith(("-m", "-DLITESEG"))} for call in calls
    }
    # of the linker
    objects = [word for word in calls[-1] if word.endswith(".o")]
    names = [Path(name).name for name in objects]
    # what is compiled for every processor comes first
    assert names[0] == "torch.tiny.cpp.o" and flags[objects[0]] == set()
    assert names[1] == "engine.kernels.tiny.cpp.scalar.o"
    assert flags[objects[1]] == {"-DLITESEG_ISA=scalar", "-DLITESEG_SIMD=generic"}
    if platform.machine() != "x86_64":
        return
    assert names[2:] == [
        "engine.kernels.tiny.cpp.avx2.o",
        "engine.kernels.tiny.cpp.avx512.o",
        "engine.kernels.bf16.tiny.cpp.avx512bf16.o",
        "engine.kernels.bf16.tiny.cpp.amx.o",
    ]
    avx2, avx512, bf16, amx = (flags[name] for name in objects[2:])
    assert avx2 == {"-DLITESEG_ISA=avx2", "-DLITESEG_SIMD=avx2", "-mavx2", "-mfma", "-mf16c"}
    assert {"-DLITESEG_ISA=avx512", "-DLITESEG_SIMD=avx512", "-mavx512f"} < avx512
    assert bf16 - avx512 == {"-DLITESEG_ISA=avx512bf16", "-mavx512bf16", "-mavx512vnni"}
    assert amx - bf16 == {"-DLITESEG_ISA=amx", "-mamx-tile", "-mamx-bf16"}


@pytest.mark.slow
@needs_compiler
def test_isolated_build_finds_the_installed_torch(project: Path) -> None:
    done = python(project, "-m", "pip", "wheel", "-v", ".", "--no-deps", "-w", "out", LITESEG_BUILD="cpu")
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("pip cannot fetch setuptools here, which an isolated build needs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-cp310-abi3-linux_" in next((project / "out").iterdir()).name
    assert build_info(next((project / "build").glob("lib*")))["TORCH"] == torch.__version__
