// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "engine/blocks/grouped_pointwise.h"
#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct ShuffleUnitArgs {
  const void* x;  // [N, C, H, W] of T
  Strides4 xs;
  GroupedPointwise compress, expand;
  // the compressed channels stay in the order in which they are computed: the depthwise weights follow that order, and
  // the expansion looks up where the channels of its groups are
  const float* depthwise;  // [9][bottleneck]
  const float* depthwise_bias;
  const int32_t* shuffle;  // [bottleneck]: shuffled place -> computed place
  const float* average;    // [9][C] of 1/9 where the pooled input is put in front, null where the input is added
  bool stores;             // the compressed map as a whole; otherwise a few of its rows are kept in a ring
  float* compressed;       // [N, H, W, bottleneck up to whole vectors] where it is stored
  int64_t compress_tile;
  void* out;  // [N, Co, Ho, Wo] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t n, c, h, w, bottleneck, branch, oh, ow;
  int64_t sh, sw, dh, dw;
  int64_t tile;  // output pixels of one image worked on at a time
};

struct ShuffleUnitTable {
  int64_t (*scratch_bytes)(const ShuffleUnitArgs& args);
  // where the compressed map is stored, which takes a float32 x with channels innermost: tiles [begin, end) of
  // compress_tile pixels of the flattened N x H x W, before any call of run
  void (*compress)(const ShuffleUnitArgs& args, int64_t begin, int64_t end);
  // tiles [begin, end); each image has ceil(Ho * Wo / tile) of them. Unless `fresh`, `scratch` is as the same thread's
  // last call with these arguments left it, and the rows it still holds are used again
  void (*run[kNumDTypes])(const ShuffleUnitArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(ShuffleUnitTable, shuffle_unit_table)
// float32 alone, for networks: a library that has no more is linked without the other dtypes
LITESEG_TABLE(ShuffleUnitTable, shuffle_unit_float_table)
