// What the plan hands to the dense convolution and pooling kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

constexpr int64_t kMostTaps = 7;  // along one side

struct ConvolutionArgs {
  const float* x;  // [N, C, H, W]
  Strides4 xs;
  const float* weight;  // panels of [Co, kernel * kernel * C], k in the order of rows, columns, channels
  const float* bias;    // [Co], padded with zeros to whole panels
  float* out;           // [N, oh, ow, Co]; pooled [N, oh / 2, ow / 2, Co]
  int64_t n, c, h, w, co;
  int64_t oh, ow;  // even where they are pooled
  int64_t kernel, stride, padding, dilation;
  int64_t less_top, less_left;  // padding minus that edge's own padding
  bool pool;                    // 2x2 maxima of stride 2
  int activation;
  float slope;
  int64_t tile;  // pixels of x worked on at a time by `points`
};

struct PoolArgs {
  const float* x;  // [N, H, W, C]
  float* out;      // [N, H / 2, W / 2, C]
  int64_t n, c, h, w;
};

struct ConvolutionTable {
  int64_t (*scratch_bytes)(const ConvolutionArgs& args);
  // rows [begin, end) of the flattened N x rows of out. Unless `fresh`, `scratch` is what the same thread's
  // last call left there
  void (*rows)(const ConvolutionArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
  // kernel 1, stride 1, no pool and x dense with channels innermost: tiles [begin, end) of the flattened N x H x W
  void (*points)(const ConvolutionArgs& args, int64_t begin, int64_t end);
  // rows [begin, end) of the flattened N x H / 2
  void (*pool)(const PoolArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(ConvolutionTable, convolution_table)
