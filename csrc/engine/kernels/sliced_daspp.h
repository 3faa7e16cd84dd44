// What the plan hands to the pyramid kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

constexpr int kMaxBranches = 8;

// one branch, summed over the input channels: 1x1 where rate is 0, else 3x3 depthwise of that dilation and 1x1
struct DasppBranch {
  int64_t rate;
  const float* depthwise;  // [9][C]
  const float* pointwise;  // panels of [F, C]
  const float* bias;
  int activation;
  const float* deep_depthwise;  // [9][F] or null: no second convolution
  const float* deep_pointwise;  // panels of [F, F]
  const float* deep_bias;
  const float* project;  // panels of [F, F], or null: the branch is added to the result as it is
};

struct SlicedDasppArgs {
  const float* x;  // [N, H, W, c]
  int64_t n, c, h, w;
  // 1x1 convolution in front, c -> channels; null: none, c == channels
  const float* last;
  const float* last_bias;
  int last_activation;
  int64_t channels, filters;
  int64_t groups;  // of input channels; each sums its part of every branch
  int64_t group_channels;
  int64_t count;
  DasppBranch branches[kMaxBranches];
  const float* pool;  // panels of [F, channels]
  const float* pool_bias;
  const float* pool_project;  // panels of [F, F]
  const float* project_bias;
  float* partial;       // [N][groups][count][H * W][F]
  float* pool_partial;  // [N][groups][F up to whole panels]
  float* start;         // [N][F up to whole panels]
  float* reduced;       // [N][count][H * W][F]
  float* out;           // [N, H, W, F]
  int64_t tile;         // pixels of the last pass
};

struct SlicedDasppTable {
  int64_t (*scratch_bytes)(const SlicedDasppArgs& args);
  // three passes, each needs all of the one before: partial sums, items [begin, end) of N * groups
  void (*sum)(const SlicedDasppArgs& args, int64_t begin, int64_t end, char* scratch);
  // their totals, items of N * (count + 1)
  void (*reduce)(const SlicedDasppArgs& args, int64_t begin, int64_t end, char* scratch);
  // second convolutions and projection, items of N * ceil(H * W / tile)
  void (*project)(const SlicedDasppArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(SlicedDasppTable, sliced_daspp_table)
