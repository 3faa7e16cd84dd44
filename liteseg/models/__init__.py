"""Models: LiteSeg, the paper's DeepLabv3+ baseline, the peers to compare with, and their weights."""

from __future__ import annotations

from liteseg.models.checkpoint import Network, list_weights, load_weights, read_metadata, save_weights
from liteseg.models.liteseg import LiteSeg, ModelConfig
from liteseg.models.official import export_official
from liteseg.models.peers import (
    CCC2,
    CCC2Config,
    DSNet,
    ENet,
    ERFNet,
    ESPNet,
    ESPNetConfig,
    PeerConfig,
    SegNet,
    SkipNetMobileNet,
    SkipNetShuffleNet,
)
from liteseg.models.profile import Profile, profile
from liteseg.models.registry import create_model, list_models

__all__ = [
    "CCC2",
    "CCC2Config",
    "DSNet",
    "ENet",
    "ERFNet",
    "ESPNet",
    "ESPNetConfig",
    "LiteSeg",
    "ModelConfig",
    "Network",
    "PeerConfig",
    "Profile",
    "SegNet",
    "SkipNetMobileNet",
    "SkipNetShuffleNet",
    "create_model",
    "export_official",
    "list_models",
    "list_weights",
    "load_weights",
    "profile",
    "read_metadata",
    "save_weights",
]
