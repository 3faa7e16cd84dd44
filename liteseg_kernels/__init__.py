"""Fused kernels for real-time semantic segmentation, as torch ops and drop-in modules."""

from .nn import (
    DASPP,
    ConvNormAct,
    InvertedResidual,
    SeparableConv2d,
    ShuffleUnit,
    UpsampleArgmax,
    UpsampleConcat,
    UpsampleCrossEntropyLoss,
)

__all__ = [
    "DASPP",
    "ConvNormAct",
    "InvertedResidual",
    "SeparableConv2d",
    "ShuffleUnit",
    "UpsampleArgmax",
    "UpsampleConcat",
    "UpsampleCrossEntropyLoss",
]
