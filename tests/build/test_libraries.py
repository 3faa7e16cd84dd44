"""Audit of the two compiled libraries: what they need from torch, and that they load and register their kernels."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from .project import ROOT, python


@pytest.fixture(params=["_C", "_C_cuda"])
def library(request: pytest.FixtureRequest) -> Path:
    if request.param == "_C_cuda" and os.environ.get("LITESEG_BUILD") != "cuda" and not _path("_C_cuda").is_file():
        pytest.skip("built without CUDA (LITESEG_BUILD=cuda makes this a failure)")
    assert _path(request.param).is_file(), "not built: python setup.py build_ext --inplace"
    return _path(request.param)


def _path(name: str) -> Path:
    return ROOT / f"liteseg_kernels/{name}.abi3.so"


def _tool(*command: str, given: str | None = None) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on PATH")
    return subprocess.run(command, check=True, input=given, capture_output=True, text=True).stdout


def _undefined(library: Path) -> list[tuple[str, str]]:
    """(kind, name) of every symbol that the loader has to find elsewhere; kind is U, or w or v for a weak one."""
    lines = _tool("nm", "-DC", "--undefined-only", str(library)).splitlines()
    return [(kind, name) for kind, name in (line.split(maxsplit=1) for line in lines)]


def test_no_cpp_symbol_of_torch_is_needed(library: Path) -> None:
    names = [name for _, name in _undefined(library)]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if re.search(r"\b(c10|at|torch|caffe2)::", name)] == []


def test_only_the_cuda_shims_are_weak(library: Path) -> None:
    weak = {name for kind, name in _undefined(library) if kind in "wv" and "torch" in name}
    shims = {"aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg"}
    assert weak == (shims if library.name.startswith("_C_cuda") else set())


# what the start-up files of gcc refer to, absent from most programs
OPTIONAL = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
# of a target as TORCH_TARGET_VERSION has it
TARGET, NEXT = "0x020b000000000000", "0x020c000000000000"
SHIMS = """
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
"""


def _shims(target: str) -> set[str]:
    """Functions of torch's C interface that its headers declare for a target version, by their own guards."""
    include = Path(torch.__file__).parent / "include"
    command = ("g++", "-E", "-P", "-x", "c++", "-std=c++17", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target}")
    text = _tool(*command, "-isystem", str(include), "-", given=SHIMS)
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


def test_every_symbol_is_the_systems_or_a_shim_of_torch_2_11(library: Path) -> None:
    """Checked against the version guards in the headers of the installed torch, not against a torch 2.11 itself."""
    shims, later = _shims(TARGET), _shims(NEXT)
    assert shims < later, "the headers' guards hide nothing from the target"
    needed = {name for _, name in _undefined(library)}
    system = {name for name in needed if re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$", name)}
    assert needed - system - OPTIONAL <= shims
    assert needed & shims, "the library uses torch"


def test_libtorch_is_needed_and_no_toolkit_or_python(library: Path) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _tool("readelf", "-d", str(library)))
    assert "libtorch.so" in needed
    assert [name for name in needed if re.match(r"lib(cuda|cudart|c10|python)", name)] == []


def test_symbol_versions_of_the_oldest_supported_systems(library: Path) -> None:
    """Ubuntu 22.04 has GLIBC 2.35 and GLIBCXX 3.4.30, Debian 12 has 2.36 and 3.4.30."""
    if tuple(map(int, platform.libc_ver()[1].split("."))) > (2, 36):
        pytest.skip("this system's C library is newer than the one that wheels are built on")
    text = _tool("nm", "-D", "--undefined-only", str(library))
    for prefix, limit in (("GLIBC", (2, 35)), ("GLIBCXX", (3, 4, 30))):
        found = {tuple(map(int, v.split("."))) for v in re.findall(rf"@{prefix}_([\d.]+)", text)}
        assert found and max(found) <= limit, f"{prefix} {max(found)}"


def test_both_load_and_register_their_keys_on_any_torch(library: Path) -> None:
    code = """
import torch, liteseg_kernels
from liteseg_kernels import _loader
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(_loader.STATUS)
print(has("liteseg_cpu::separable_conv2d", "CPU"), has("liteseg_cpu::separable_conv2d", "CUDA"))
ops = (
    "daspp", "inverted_residual", "separable_conv2d", "separable_conv2d_backward", "separable_conv2d_classifier",
    "shuffle_unit", "upsample_argmax", "upsample_concat_separable_conv2d",
)
print(all(has(f"liteseg_cuda::{op}", "CUDA") for op in ops), any(has(f"liteseg_cuda::{op}", "CPU") for op in ops))
"""
    done = python(ROOT, "-c", code, LITESEG_LOAD_CUDA="1")
    status, cpu, cuda = done.stdout.splitlines()
    if library.name.startswith("_C_cuda"):
        assert "'_C_cuda': None" in status and cuda == "True False"
    else:
        assert "'_C': None" in status and cpu == "True False"


def test_the_cuda_library_stays_out_where_torch_sees_no_gpu(library: Path) -> None:
    code = "from liteseg_kernels import _loader; print(_loader.STATUS['_C_cuda'])"
    reason = python(ROOT, "-c", code, CUDA_VISIBLE_DEVICES="").stdout
    assert "sees no CUDA device" in reason or "not built" in reason


# of Python's stable interface since 3.10 at the latest
PYTHONS = {
    *("PyArg_ParseTuple", "PyBool_FromLong", "PyBytes_AsString", "PyBytes_Size", "PyDict_GetItemWithError"),
    *("PyDict_Size", "PyDict_Type", "PyErr_Format", "PyExc_TypeError", "PyModule_Create2", "PyTuple_GetItem"),
    *("PyTuple_Size", "PyTuple_Type", "PyType_GetFlags"),
}


def test_the_comparison_needs_only_pythons_stable_interface() -> None:
    file = _path("_watch")
    if not file.is_file():
        pytest.skip("built without Python's headers")
    needed = {name for _, name in _undefined(file)}
    system = {name for name in needed if re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$", name)}
    optional = {*OPTIONAL, "__cxa_finalize"}
    assert {"PyDict_GetItemWithError"} <= needed - system - optional <= PYTHONS
    libraries = re.findall(r"\(NEEDED\).*\[(.+)\]", _tool("readelf", "-d", str(file)))
    assert [name for name in libraries if "python" in name or "torch" in name] == []
