"""Loads the compiled libraries, and remembers why one is not loaded."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from . import _schemas  # noqa: F401  # the libraries add kernels to the ops defined there

LIBRARIES = ("_C", "_C_cuda", "_watch")
# library -> None when it is loaded, else the reason why it is not; filled by `load`
STATUS: dict[str, str | None] = {}

# an extension of Python, and none of torch's
_watch: ModuleType | None = None
_logger = logging.getLogger("liteseg_kernels")
_warned = False

# of all compiled libraries; the sanitizers' build lies in a folder of its own (tests/sanitizers)
FOLDER = Path(os.environ.get("LITESEG_LIBRARIES") or Path(__file__).parent)


def _try(name: str) -> str | None:
    file = FOLDER / f"{name}.abi3.so"
    if not file.is_file():
        try:
            from ._build_info import SKIPPED
        except ImportError:
            return "not built: run `pip install .` or `python setup.py build_ext --inplace` in the checkout"
        if name in SKIPPED:
            return f"not built: {SKIPPED[name]}"
        return f"was built, but {file} is gone: install again"
    if name == "_C_cuda" and not torch.cuda.is_available() and os.environ.get("LITESEG_LOAD_CUDA") != "1":
        return "built, but torch sees no CUDA device (LITESEG_LOAD_CUDA=1 loads it all the same)"
    try:
        if name == "_watch":
            _load_watch(file)
        else:
            torch.ops.load_library(str(file))
    except (ImportError, OSError, RuntimeError) as error:
        return f"failed to load into torch {torch.__version__}: {error}"
    return None


def _load_watch(file: Path) -> None:
    global _watch
    spec = importlib.util.spec_from_file_location(f"{__package__}._watch", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _watch = module


def load() -> None:
    """Load every library that can be loaded, once a process. Never raises and prints nothing: see `STATUS`."""
    for name in LIBRARIES:
        if name not in STATUS:
            STATUS[name] = _try(name)


def unchanged() -> Callable[..., bool] | None:
    """The function of csrc/python/watch.cpp, where that is built."""
    load()
    return None if _watch is None else _watch.unchanged


def warn_without_kernels() -> None:
    """Log, once a process, that there are no compiled kernels for the CPU, why, and what to do; nothing where they are.

    For those who make a network fast or use one (`fuse`, `optimize`, `predict`), and not for every import.
    """
    global _warned
    reason = missing("cpu")
    if reason is None or _warned:
        return
    _warned = True
    remedy = (
        "; to mend it, in the sources: `LITESEG_BUILD=cpu pip install --no-build-isolation --no-deps --no-cache-dir "
        "--force-reinstall .`"
    )
    _logger.warning(
        "liteseg_kernels: no compiled kernels for the CPU, whose networks run on PyTorch's own, slower operations: "
        "%s%s (`python -m liteseg_kernels.info` shows more)",
        reason,
        remedy if sys.platform == "linux" else "",
    )


def missing(backend: str) -> str | None:
    """Why the compiled library behind backend "cpu" or "cuda" is not loaded; None when it is."""
    load()
    return STATUS[{"cpu": "_C", "cuda": "_C_cuda"}[backend]]
