"""Set-up of every test run: options, seeds, threads, and the determinism that the kernel tests run under."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests marked slow, large or build")


def pytest_configure(config: pytest.Config) -> None:
    # PyTorch's own float32 convolutions are the yardstick on a GPU too
    torch.backends.cudnn.allow_tf32 = False
    # read when triton is first imported, which no conftest does: its kernels run in the interpreter, but for `-m gpu`
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # cuBLAS is deterministic only with a fixed workspace
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        # more threads than cores make every operation wait for the others
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    quick = config.getoption("--quick")
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if quick and marks & {"slow", "large", "build"}:
            item.add_marker(pytest.mark.skip(reason="--quick"))
        if "gpu" in marks and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "large" in marks and "large" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="needs tens of gigabytes: run with -m large"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def determinism(request: pytest.FixtureRequest) -> Iterator[None]:
    """In tests/kernels: deterministic algorithms, with every fresh allocation (in C++ too) filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    # what a test's trainer switches on ends with that test
    if "kernels" in request.path.relative_to(ROOT / "tests").parts:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with data/ and weights/: LITESEG_SHARED, else `shared` beside the checkout."""
    folder = Path(os.environ.get("LITESEG_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "weights").is_dir():
        pytest.skip(f"no data and weights in {folder} (set LITESEG_SHARED)")
    return folder
