// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct SeparableConvArgs {
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  const float* depthwise;  // [kh * kw][C]
  const float* pointwise;  // panels, gemm.h
  const float* bias;       // [Co], padded with zeros to whole panels
  const void* residual;    // [N, Co, Ho, Wo] of T, or null
  Strides4 rs;
  void* out;  // [N, Co, Ho, Wo] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t n, c, h, w, co, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int activation;
  float slope;
  int64_t tile;  // output pixels worked on at a time
};

struct SeparableConvTable {
  int64_t (*scratch_bytes)(const SeparableConvArgs& args);
  // output pixels [begin * tile, end * tile) of the flattened N x Ho x Wo
  void (*run[kNumDTypes])(const SeparableConvArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(SeparableConvTable, separable_conv2d_table)
