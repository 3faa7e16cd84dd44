"""Real-time semantic segmentation with LiteSeg: models, weights, data, training and a command line.

Every name is loaded when it is first asked for, so that what needs no torch (records of benchmarks, files) starts at
once, and where torch does not start.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liteseg import metrics
    from liteseg.export import export
    from liteseg.models import create_model, list_models, list_weights, load_weights, profile, save_weights
    from liteseg.predict import predict
    from liteseg.quantize import quantize
    from liteseg_kernels import fuse
    from liteseg_kernels._version import __version__

__all__ = [
    "__version__",
    "create_model",
    "export",
    "fuse",
    "list_models",
    "list_weights",
    "load_weights",
    "metrics",
    "predict",
    "profile",
    "quantize",
    "save_weights",
]

_PLACES = {
    **dict.fromkeys(
        ("create_model", "list_models", "list_weights", "load_weights", "profile", "save_weights"), "liteseg.models"
    ),
    "__version__": "liteseg_kernels._version",
    "export": "liteseg.export",
    "fuse": "liteseg_kernels",
    "predict": "liteseg.predict",
    "quantize": "liteseg.quantize",
}


class _Package(ModuleType):
    """This package: a function is not replaced by the submodule of its name when that is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
