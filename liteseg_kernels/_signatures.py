"""Arguments and results of all ops, in one place.

Without an import: setup.py reads this too, for programs without Python (csrc/torch/ops.cpp).
"""

from __future__ import annotations

_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
_SEPARABLE_GEOMETRY = f"{_GEOMETRY}, int activation, float negative_slope"
_NORMALISED = "Tensor x, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, Tensor? residual"

# arguments and results after the op's name; activation is the index in activations.TABLE
SCHEMAS = {
    "separable_conv2d": "(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bias, Tensor? residual, "
    f"{_SEPARABLE_GEOMETRY}) -> Tensor",
    "separable_conv2d_backward": "(Tensor grad, Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, "
    f"Tensor output, {_SEPARABLE_GEOMETRY}, bool[5] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "separable_conv2d_classifier": "(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bias, "
    f"Tensor classifier_weight, Tensor? classifier_bias, {_SEPARABLE_GEOMETRY}) -> Tensor",
    "depthwise_conv2d": f"(Tensor x, Tensor weight, {_GEOMETRY}) -> Tensor",
    "depthwise_conv2d_backward": f"(Tensor grad, Tensor x, Tensor weight, {_GEOMETRY}, bool[2] output_mask) "
    "-> (Tensor, Tensor)",
    # mean and sum of squared deviations
    "batch_norm_statistics": "(Tensor x) -> (Tensor, Tensor)",
    # the gradient of x is that through its statistics too; group: process group they were combined over, or ""
    "batch_norm_activation": f"({_NORMALISED}, int activation, float negative_slope, str group) -> Tensor",
    "batch_norm_activation_backward_reduce": f"(Tensor grad, {_NORMALISED}, int activation, float negative_slope) "
    "-> (Tensor, Tensor)",
    "batch_norm_activation_backward": f"(Tensor grad, {_NORMALISED}, Tensor mean_grad, Tensor mean_dot, "
    "int activation, float negative_slope, bool[2] output_mask) -> (Tensor, Tensor)",
    "inverted_residual": "(Tensor x, Tensor? expand_weight, Tensor? expand_bias, Tensor depthwise_weight, "
    "Tensor? depthwise_bias, Tensor project_weight, Tensor? project_bias, SymInt[2] stride, SymInt[2] dilation, "
    "int activation, float negative_slope, bool residual) -> Tensor",
    "inverted_residual_backward": "(Tensor grad, Tensor x, Tensor? expand_weight, Tensor? expand_bias, "
    "Tensor depthwise_weight, Tensor? depthwise_bias, Tensor project_weight, SymInt[2] stride, SymInt[2] dilation, "
    "int activation, float negative_slope, bool residual, bool[7] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "shuffle_unit": "(Tensor x, Tensor compress_weight, Tensor compress_bias, Tensor depthwise_weight, "
    "Tensor depthwise_bias, Tensor expand_weight, Tensor expand_bias, int groups, SymInt[2] stride, "
    "SymInt[2] dilation, bool concat) -> Tensor",
    "shuffle_unit_backward": "(Tensor grad, Tensor x, Tensor compress_weight, Tensor compress_bias, "
    "Tensor depthwise_weight, Tensor depthwise_bias, Tensor expand_weight, Tensor output, int groups, "
    "SymInt[2] stride, SymInt[2] dilation, bool concat, bool[7] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "daspp": "(Tensor x, Tensor? direct_weight, Tensor? point_weight, Tensor? point_bias, "
    "Tensor[] atrous_depthwise, Tensor[] atrous_pointwise, Tensor[] atrous_bias, "
    "Tensor[] deep_depthwise, Tensor[] deep_pointwise, Tensor[] deep_bias, "
    "Tensor pool_weight, Tensor pool_bias, Tensor project_weight, Tensor project_bias, int[] rates) -> Tensor",
    "daspp_backward": "(Tensor grad, Tensor x, Tensor? direct_weight, Tensor? point_weight, Tensor? point_bias, "
    "Tensor[] atrous_depthwise, Tensor[] atrous_pointwise, Tensor[] atrous_bias, "
    "Tensor[] deep_depthwise, Tensor[] deep_pointwise, Tensor[] deep_bias, "
    "Tensor pool_weight, Tensor pool_bias, Tensor project_weight, Tensor output, int[] rates) -> Tensor[]",
    "upsample_concat": "(Tensor x, Tensor skip, bool align_corners) -> Tensor",
    "upsample_concat_backward": "(Tensor grad, SymInt[2] size, SymInt channels, bool align_corners) "
    "-> (Tensor, Tensor)",
    "upsample_concat_separable_conv2d": "(Tensor x, Tensor skip, Tensor depthwise_weight, Tensor pointwise_weight, "
    f"Tensor? bias, {_SEPARABLE_GEOMETRY}, bool align_corners) -> Tensor",
    "upsample_concat_separable_conv2d_backward": "(Tensor grad, Tensor x, Tensor skip, Tensor depthwise_weight, "
    f"Tensor pointwise_weight, Tensor output, {_SEPARABLE_GEOMETRY}, bool align_corners, bool[5] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "upsample_argmax": "(Tensor logits, SymInt[2] size, bool align_corners) -> Tensor",
    "upsample_cross_entropy": "(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
    "float label_smoothing, bool align_corners) -> (Tensor, Tensor)",
    "upsample_cross_entropy_map": "(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
    "float label_smoothing, bool align_corners) -> Tensor",
    "upsample_cross_entropy_backward": "(Tensor scale, Tensor logits, Tensor target, Tensor? weight, "
    "int ignore_index, float label_smoothing, bool align_corners) -> Tensor",
    "preprocess": "(Tensor image, SymInt[2] size, float[] mean, float[] std, ScalarType dtype, bool channels_last) "
    "-> Tensor",
}
