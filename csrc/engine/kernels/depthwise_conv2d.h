// What the registered ops hand to the kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct DepthwiseConvArgs {
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  const void* grad;  // [N, C, Ho, Wo] of T, or null
  Strides4 gs;
  const float* weight;   // [kh * kw][C]
  const float* flipped;  // the same, last tap first; backward only
  int64_t n, c, h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  void* out;  // forward [N, C, Ho, Wo], backward [N, C, H, W] of T, dense, NHWC or NCHW, or null
  Strides4 os;
  int64_t chunks;          // parts of the rows of N x Ho that are summed on their own; backward only
  float* sums;             // [chunks][kh * kw][channel_stride] or null
  int64_t channel_stride;  // C rounded up to whole vectors
  void* grad_weight;       // [C][kh * kw] of T
};

struct DepthwiseConvTable {
  int64_t width;  // channel_stride is a multiple of this
  int64_t (*scratch_bytes)(const DepthwiseConvArgs& args);
  // rows [begin, end) of the flattened N x Ho
  void (*forward_rows[kNumDTypes])(const DepthwiseConvArgs& args, int64_t begin, int64_t end, char* scratch);
  // chunks [begin, end): their rows of x's gradient, and their sums of the weight's
  void (*backward_chunks[kNumDTypes])(const DepthwiseConvArgs& args, int64_t begin, int64_t end, char* scratch);
  void (*reduce_weight[kNumDTypes])(const DepthwiseConvArgs& args);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(DepthwiseConvTable, depthwise_conv2d_table)
