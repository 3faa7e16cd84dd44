"""Without the compiled libraries everything imports, works and says what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from liteseg_kernels import _loader

from .project import GENERATED, ROOT, python

COPY = """
import sys, torch
# an editable install would answer for modules that the copy does not have
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
"""
USE = f"""{COPY}
import liteseg_kernels, liteseg_kernels.functional as F
from liteseg_kernels import info
assert liteseg_kernels.__file__.startswith(sys.argv[1]), liteseg_kernels.__file__
x = torch.randn(2, 8, 9, 11)
depthwise, pointwise = torch.randn(8, 1, 3, 3), torch.randn(5, 8, 1, 1)
out = F.separable_conv2d(x, depthwise, pointwise, padding=1)
expected = torch.conv2d(torch.conv2d(x, depthwise, padding=1, groups=8), pointwise)
torch.testing.assert_close(out, expected)
print(info.collect()["libraries"]["_C"])
"""


RECORD = """
MODE = "auto"
TORCH = COMPILER = NVCC = None
CUDA_ARCHS = ()
SOURCES = {}
SKIPPED = """


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The kernel library alone, with no compiled file and no record of a build."""
    shutil.copytree(ROOT / "liteseg_kernels", tmp_path / "liteseg_kernels", ignore=GENERATED)
    return tmp_path


def test_works_without_libraries_and_says_why(bare: Path) -> None:
    done = python(bare, "-c", USE, str(bare))
    assert done.returncode == 0, done.stderr
    assert "not built: run `pip install .`" in done.stdout


WARNED = f"""{COPY}
import numpy, liteseg, liteseg_kernels as lk
picture = numpy.zeros((32, 32, 3), numpy.uint8)
net = liteseg.create_model("liteseg_shufflenet", num_classes=2)
uses = {{
    "fuse": lambda: lk.fuse(lk.SeparableConv2d(3, 5)),
    "predict": lambda: liteseg.predict(net, picture),
}}
assert liteseg.__file__.startswith(sys.argv[1])
for name in sys.argv[2:]:
    uses[name]()
    print(name, file=sys.stderr)
"""


@pytest.mark.parametrize("first", ["fuse", "predict"])
def test_missing_kernels_are_told_once_with_the_reason_and_the_remedy(bare: Path, first: str) -> None:
    ignore = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(ROOT / "liteseg", bare / "liteseg", ignore=ignore)
    (bare / "liteseg_kernels/_build_info.py").write_text(RECORD + "{'_C': 'LITESEG_BUILD=none'}\n")
    done = python(bare, "-c", WARNED, str(bare), first, "fuse", "predict")
    assert done.returncode == 0, done.stderr
    told, *rest = done.stderr.splitlines()
    assert "no compiled kernels for the CPU" in told and "not built: LITESEG_BUILD=none" in told
    assert "`LITESEG_BUILD=cpu pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall .`" in told
    assert rest == [first, "fuse", "predict"]


@pytest.mark.skipif(_loader.missing("cpu") is not None, reason="the compiled CPU kernels are not loaded")
def test_nothing_is_told_where_the_kernels_are() -> None:
    assert python(ROOT, "-c", WARNED, str(ROOT), "fuse", "predict").stderr.splitlines() == ["fuse", "predict"]


def test_the_reason_of_the_build_is_kept(bare: Path) -> None:
    (bare / "liteseg_kernels/_build_info.py").write_text(RECORD + "{'_C': 'no C++ compiler'}\n")
    done = python(bare, "-c", USE, str(bare))
    assert done.stdout.strip() == "not built: no C++ compiler"


def test_a_library_that_was_built_and_is_gone(bare: Path) -> None:
    (bare / "liteseg_kernels/_build_info.py").write_text(RECORD + "{}\n")
    done = python(bare, "-c", USE, str(bare))
    assert "was built, but" in done.stdout and "install again" in done.stdout


def test_a_library_that_does_not_load(bare: Path) -> None:
    (bare / "liteseg_kernels/_C.abi3.so").write_bytes(b"not a library")
    done = python(bare, "-c", USE, str(bare))
    assert done.returncode == 0, done.stderr
    assert "failed to load into torch" in done.stdout


def test_import_prints_nothing(bare: Path) -> None:
    for folder in (bare, ROOT):
        done = python(folder, "-c", "import liteseg_kernels")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_kernel_library_does_not_import_the_models() -> None:
    code = "import sys, liteseg_kernels, liteseg_kernels.info; print('liteseg' in sys.modules)"
    assert python(ROOT, "-c", code).stdout.strip() == "False"


def test_info_prints_a_table() -> None:
    done = python(ROOT, "-m", "liteseg_kernels.info")
    assert done.returncode == 0, done.stderr
    names = [line[:17].strip() for line in done.stdout.splitlines()]
    for name in (
        "torch",
        "triton",
        "nvcc",
        "library _C",
        "library _C_cuda",
        "library _watch",
        "backend cpu",
        "default backend",
    ):
        assert name in names
