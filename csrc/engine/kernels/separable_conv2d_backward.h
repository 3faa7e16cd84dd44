// What the registered op hands to the kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct SeparableConvBackwardArgs {
  const void* grad;  // [N, Co, Ho, Wo] of T
  Strides4 gs;
  const void* output;  // likewise; read where the activation needs it
  Strides4 os;
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  const float* depthwise;          // [kh * kw][C]
  const float* depthwise_flipped;  // the same, last tap first
  const float* transposed;         // panels of the pointwise weight's transpose, [C, Co]
  const float* zeros;              // [C], padded to whole panels
  int64_t n, c, h, w, co, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int activation;
  float slope;

  int64_t tile;          // output pixels worked on at a time
  int64_t chunks;        // parts of the output pixels that are summed on their own
  int64_t chunk_tiles;   // tiles of each
  float* between;        // gradient of the depthwise map, [N * Ho * Wo][channel_stride], or null
  float* pointwise_sum;  // [chunks][Co][channel_stride] or null
  float* depthwise_sum;  // [chunks][kh * kw][channel_stride] or null
  float* bias_sum;       // [chunks][out_stride] or null
  int64_t channel_stride, out_stride;

  void* grad_residual;  // [N, Co, Ho, Wo] of T, dense, NHWC or NCHW, or null
  Strides4 rs;
  void* grad_x;  // [N, C, H, W] of T, likewise
  Strides4 dxs;
  void* grad_pointwise;  // [Co][C] of T or null
  void* grad_depthwise;  // [C][kh * kw] of T or null
  void* grad_bias;       // [Co] of T or null
};

struct SeparableConvBackwardTable {
  int64_t width;  // channel strides are multiples of this
  int64_t (*scratch_bytes)(const SeparableConvBackwardArgs& args);
  // chunks [begin, end): gradients of the residual and of the depthwise map, partial sums of those of the weights
  void (*sum_chunks[kNumDTypes])(const SeparableConvBackwardArgs& args, int64_t begin, int64_t end, char* scratch);
  int64_t (*input_scratch_bytes)(const SeparableConvBackwardArgs& args);
  // rows [begin, end) of the flattened N x H: gradient of x
  void (*input_rows[kNumDTypes])(const SeparableConvBackwardArgs& args, int64_t begin, int64_t end, char* scratch);
  // output channels [begin, end) of the pointwise weight's gradient, chunk by chunk
  void (*reduce_pointwise[kNumDTypes])(const SeparableConvBackwardArgs& args, int64_t begin, int64_t end);
  // gradients of the depthwise weight and of the bias
  void (*reduce_rest[kNumDTypes])(const SeparableConvBackwardArgs& args);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(SeparableConvBackwardTable, separable_conv2d_backward_table)
