// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct InvertedResidualArgs {
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  const float* expand;       // panels of [hidden, C], or null where hidden == C is x itself
  const float* expand_bias;  // [hidden], padded with zeros to whole panels
  const float* depthwise;    // [kh * kw][hidden]
  const float* depthwise_bias;
  const float* project;  // panels of [Co, hidden]
  const float* project_bias;
  void* out;  // [N, Co, Ho, Wo] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t n, c, h, w, hidden, co, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int activation;  // after the expansion and the depthwise part; smooth ones too
  float slope;
  int out_activation;  // after the residual; a smooth one needs channels innermost
  float out_slope;
  bool residual;  // adds x, which then has the output's shape
  int64_t tile;   // output pixels of one image worked on at a time
};

struct InvertedResidualTable {
  int64_t (*scratch_bytes)(const InvertedResidualArgs& args);
  // tiles [begin, end); each image has ceil(Ho * Wo / tile) of them. Unless `fresh`, `scratch` is as the same thread's
  // last call with these arguments left it, and the rows it still holds are used again
  void (*run[kNumDTypes])(const InvertedResidualArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(InvertedResidualTable, inverted_residual_table)
// float32 alone, for networks: a library that has no more is linked without the other dtypes
LITESEG_TABLE(InvertedResidualTable, inverted_residual_float_table)
