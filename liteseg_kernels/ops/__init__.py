"""The ops: checks, fake kernels, autograd and the table of backends, one file an op. Importing registers them."""

from . import (
    batch_norm_activation,
    daspp,
    depthwise_conv2d,
    inverted_residual,
    preprocess,
    separable_conv2d,
    separable_conv2d_classifier,
    shuffle_unit,
    upsample_argmax,
    upsample_concat,
    upsample_concat_separable_conv2d,
    upsample_cross_entropy,
)

__all__ = [
    "batch_norm_activation",
    "daspp",
    "depthwise_conv2d",
    "inverted_residual",
    "preprocess",
    "separable_conv2d",
    "separable_conv2d_classifier",
    "shuffle_unit",
    "upsample_argmax",
    "upsample_concat",
    "upsample_concat_separable_conv2d",
    "upsample_cross_entropy",
]
