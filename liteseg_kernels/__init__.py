"""Fused kernels for real-time semantic segmentation, as torch ops and drop-in modules.

`functional` has one function an op, the modules below are drop-in `torch.nn` modules, `torch.ops.liteseg` holds the
registered ops. `use_backend` chooses who runs them, `explain` tells who would.
"""

import importlib

from . import _loader

_loader.load()

# after the libraries, whose kernels the ops look for; _autocast registers its rules
from . import _autocast, functional, runtime  # noqa: E402, F401
from ._dispatch import BackendError, Explanation, use_backend  # noqa: E402
from ._version import __version__  # noqa: E402
from .explanation import ModuleExplanation, explain  # noqa: E402
from .fuse import fuse, to_reference  # noqa: E402
from .nn import (  # noqa: E402
    DASPP,
    ConvNormAct,
    InvertedResidual,
    SeparableConv2d,
    ShuffleUnit,
    UpsampleArgmax,
    UpsampleConcat,
    UpsampleCrossEntropyLoss,
)


def __getattr__(name: str) -> object:
    # Dynamo and what it imports take seconds: only for those who ask
    if name in ("compiler", "optimize"):
        module = importlib.import_module(".compiler", __name__)
        return module if name == "compiler" else module.optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DASPP",
    "BackendError",
    "ConvNormAct",
    "Explanation",
    "InvertedResidual",
    "ModuleExplanation",
    "SeparableConv2d",
    "ShuffleUnit",
    "UpsampleArgmax",
    "UpsampleConcat",
    "UpsampleCrossEntropyLoss",
    "__version__",
    "explain",
    "functional",
    "fuse",
    "optimize",
    "runtime",
    "to_reference",
    "use_backend",
]
