"""The wheel: its name, what is in it and what is not, and that it works outside the checkout."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .project import ROOT, copy, objects, python

# one group: the wheel is built once, not once a worker
pytestmark = [
    pytest.mark.build,
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = copy(tmp_path_factory.mktemp("wheel") / "project")
    # what is compiled already is the same there
    if (ROOT / "build/kernels").is_dir():
        shutil.copytree(ROOT / "build/kernels", target / "build/kernels")
    return target


@pytest.fixture(scope="module")
def wheel(project: Path) -> Path:
    command = ["-m", "pip", "-q", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "out"]
    done = python(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((project / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def files(wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"liteseg-[\d.]+-cp310-abi3-linux_\w+\.whl", wheel.name)


def test_all_libraries_are_in_it(files: zipfile.ZipFile) -> None:
    values: dict[str, object] = {}
    exec(files.read("liteseg_kernels/_build_info.py"), values)
    skipped = values["SKIPPED"]
    assert isinstance(skipped, dict) and "_C" not in skipped
    libraries = {name for name in files.namelist() if name.endswith(".so")}
    extensions = {f"liteseg_kernels/{n}.abi3.so" for n in ("_C", "_C_cuda", "_watch") if n not in skipped}
    assert libraries == extensions | {"liteseg_kernels/libliteseg.so"}
    assert shutil.which("nvcc") is None or "_C_cuda" not in skipped
    assert not Path(sysconfig.get_path("include"), "Python.h").is_file() or "_watch" not in skipped


def test_every_module_and_data_file_is_in_it(files: zipfile.ZipFile, project: Path) -> None:
    patterns = [
        "*.py",
        "py.typed",
        "weights/*.safetensors",
        "weights/*.md",
        "weights/*.txt",
        "assets/*",
        "configs/*.yaml",
        "tiles.csv",
    ]
    expected = {
        path.relative_to(project).as_posix()
        for package in ("liteseg", "liteseg_kernels")
        for pattern in patterns
        for path in (project / package).rglob(pattern)
    }
    expected.add("liteseg_kernels/_build_info.py")
    assert sorted(expected - set(files.namelist())) == []


def test_nothing_else_is_in_it(files: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in files.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"liteseg", "liteseg_kernels"}
    licences = {Path(name).name for name in files.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE", "LICENSE.txt"}
    unwanted = (".cpp", ".cu", ".h", ".pth", ".pt", ".png", ".jpg", ".jpeg", ".mp4")
    unwanted_files = [name for name in files.namelist() if name.lower().endswith(unwanted)]
    # drawn for the demo
    assert unwanted_files == ["liteseg/assets/drawn_street.jpg"]


def test_no_camvid_frame_is_in_it(files: zipfile.ZipFile, shared: Path) -> None:
    frames = {hashlib.sha256(p.read_bytes()).digest() for p in (shared / "data/camvid").rglob("*") if p.is_file()}
    assert frames
    assert [name for name in files.namelist() if hashlib.sha256(files.read(name)).digest() in frames] == []


def test_no_plain_function_is_compiled_for_a_wider_instruction_set(wheel: Path, project: Path) -> None:
    """The linker keeps one copy of a shared inline function: it must not be one that old processors cannot run."""
    if shutil.which("nm") is None:
        pytest.skip("no nm on PATH")

    def shared(path: Path) -> set[str]:
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        symbols = [line.split(maxsplit=2)[1:] for line in lines.splitlines()]
        return {name for kind, name in symbols if kind in "WVu"}

    files = objects(project).values()
    wide = [path for path in files if re.search(r"\.avx\w+\.o$", path.name)]
    assert len(files) > len(wide) and (wide or platform.machine() != "x86_64")
    plain = set().union(*(shared(path) for path in files if path not in wide))
    assert plain and {path.name: shared(path) & plain for path in wide} == {path.name: set() for path in wide}


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    done = python(tmp_path, "-m", "pip", "-q", "install", "--no-deps", "--target", str(installed), str(wheel))
    assert done.returncode == 0, done.stderr
    code = """
import liteseg, liteseg_kernels, numpy, sys
from liteseg_kernels import _loader
assert liteseg.__file__.startswith(sys.argv[1]) and liteseg_kernels.__file__.startswith(sys.argv[1])
assert _loader.STATUS["_C"] is None, _loader.STATUS
weights = liteseg.list_weights()
model = liteseg.create_model(weights=weights[0]) if weights else liteseg.create_model("liteseg_mobilenetv2")
labels = liteseg.predict(liteseg.fuse(model.eval()), numpy.zeros((64, 96, 3), dtype=numpy.uint8))
print(labels.shape, labels.dtype)
"""
    done = python(tmp_path, "-c", code, str(installed), PYTHONPATH=str(installed))
    assert done.stdout.strip() == "(64, 96) uint8", done.stderr
