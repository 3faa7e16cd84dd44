// What the graph hands to the kernels between its convolutions, of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// maps are float, [N, H, W, C], dense, unless strides are given
struct DepthwiseArgs {
  const float* x;
  const float* weight;  // [kh * kw][C]
  const float* bias;    // [C]
  float* out;
  int64_t n, c, h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  int activation;
  float slope;
};

struct WindowArgs {
  const float* x;
  float* out;
  int64_t n, c, h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw;
  bool maximum;       // otherwise the mean
  bool counts_zeros;  // of the padding, in the mean
};

enum Combination : int { kAdd = 0, kMultiply = 1 };

struct CombineArgs {
  const float* a;
  const float* b;  // of a's shape, or [N, C] where it is spread over the pixels
  float* out;
  int64_t n, c, plane;
  bool spread;
  int combination;
  int activation;
  float slope;
};

struct MeanArgs {
  const float* x;
  float* out;  // [N, C]
  int64_t n, c, h, w;
};

// to[n][y + top][x + left][c + channel] = from[n][y'][x'][c], zero around it
struct CopyArgs {
  const float* from;
  Strides4 fs;
  float* to;
  Strides4 ts;
  int64_t c, h, w, oh, ow, top, left;
  // places in `from` of the rows and columns of `to`, or null where they are the same
  const int32_t* ys;
  const int32_t* xs;
};

struct GraphTable {
  // rows [begin, end) of the flattened N x oh
  void (*depthwise)(const DepthwiseArgs& args, int64_t begin, int64_t end);
  void (*window)(const WindowArgs& args, int64_t begin, int64_t end);
  // pixels [begin, end) of the flattened N x H x W
  void (*combine)(const CombineArgs& args, int64_t begin, int64_t end);
  // blocks of mean_channels channels, [begin, end) of the flattened N x blocks
  int64_t mean_channels;
  void (*mean)(const MeanArgs& args, int64_t begin, int64_t end);
  // rows [begin, end) of the flattened N x oh
  void (*copy)(const CopyArgs& args, int64_t begin, int64_t end);
  // in place; `activation` any
  void (*activate)(float* p, int64_t count, int activation, float slope);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(GraphTable, graph_table)
