// What the registered op hands to the kernel of the chosen instruction set; the separable branches in between are
// those of separable_conv2d.h.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// one summand of the projection: a map [N * H * W][channels] times panels of [Co, channels]
struct Projected {
  const float* map;
  int64_t channels;
  const float* weight;
};

struct DasppArgs {
  const float* x;  // [N * H * W][C]
  int64_t n, c, h, w, filters, co;
  const float* pool;  // panels of [filters, C]
  const float* pool_bias;
  const float* pool_project;  // panels of [Co, filters]
  const float* project_bias;
  float* mean;   // [N][C]
  float* start;  // [N][start_stride]: the projection's bias and the pooled branch, constant over an image
  int64_t start_stride;
  const float* zeros;  // [Co], padded to whole panels
  // a 1x1 branch with ReLU and its part of the projection, or null
  const float* point;  // panels of [filters, C]
  const float* point_bias;
  const float* point_project;  // panels of [Co, filters]
  const Projected* summands;
  int64_t count;  // one or more
  void* out;      // [N, Co, H, W] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t pool_channels;  // channels averaged at a time
  int64_t tile;           // pixels of one image projected at a time
};

struct DasppTable {
  int64_t (*scratch_bytes)(const DasppArgs& args);
  // three passes, each needs all of the one before: means, items [begin, end) of N * ceil(C / pool_channels)
  void (*pool)(const DasppArgs& args, int64_t begin, int64_t end);
  // the start of the sums of images [begin, end)
  void (*start)(const DasppArgs& args, int64_t begin, int64_t end, char* scratch);
  // projection, items of N * ceil(H * W / tile)
  void (*project[kNumDTypes])(const DasppArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(DasppTable, daspp_table)
