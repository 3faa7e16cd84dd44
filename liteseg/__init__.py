"""Real-time semantic segmentation with LiteSeg: models, weights, data, training and a command line."""

from __future__ import annotations

from liteseg import metrics
from liteseg.export import export
from liteseg.models import create_model, list_models, list_weights, load_weights, profile, save_weights
from liteseg.predict import predict
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
    "save_weights",
]
