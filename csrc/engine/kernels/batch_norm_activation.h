// What the registered ops hand to the kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct BatchNormArgs {
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  const void* grad;  // likewise, or null
  Strides4 gs;
  const void* residual;  // likewise, or null
  Strides4 rs;
  int64_t n, c, h, w;
  int activation;
  float slope;
  const float* mean;    // [C], likewise the next three
  const float* scale;   // weight / standard deviation
  const float* shift;   // bias
  const float* offset;  // of x's gradient: scale * mean of the gradient
  const float* factor;  // of x's gradient and the deviation: scale * mean of (gradient * deviation) / variance

  int64_t block_rows;      // rows of the flattened N x H that are summed on their own
  int64_t blocks;          // of each channel
  int64_t channel_stride;  // C rounded up to whole vectors
  float* sums;             // [blocks][2][channel_stride]
  float* rest;             // [blocks][channel_stride], of the statistics only
  float* first;            // [C], results of the sums
  float* second;           // likewise

  void* out;  // [N, C, H, W] of T, dense, NHWC or NCHW, or null
  Strides4 os;
  void* grad_residual;  // likewise, or null
  Strides4 drs;
};

struct BatchNormTable {
  int64_t width;  // channel_stride is a multiple of this
  // blocks [begin, end): mean and squared deviations of x
  void (*block_statistics[kNumDTypes])(const BatchNormArgs& args, int64_t begin, int64_t end);
  // the same blocks: sums of the gradient before the activation and of its product with x's deviation
  void (*block_gradients[kNumDTypes])(const BatchNormArgs& args, int64_t begin, int64_t end);
  void (*combine_statistics)(const BatchNormArgs& args);
  void (*combine_gradients)(const BatchNormArgs& args);
  // rows [begin, end) of the flattened N x H
  void (*apply_rows[kNumDTypes])(const BatchNormArgs& args, int64_t begin, int64_t end);
  void (*gradient_rows[kNumDTypes])(const BatchNormArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(BatchNormTable, batch_norm_activation_table)
