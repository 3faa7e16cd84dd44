"""Real-time semantic segmentation with LiteSeg: models, weights, data, training and a command line."""

from __future__ import annotations

from liteseg.models import create_model, list_models, list_weights, load_weights, save_weights

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models", "list_weights", "load_weights", "save_weights"]
