// What the registered ops hand to the kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct UpsampleConcatArgs {
  const void* low;  // [N, C1, h, w] of T
  Strides4 ls;
  const void* skip;  // [N, C2, H, W] of T
  Strides4 ss;
  void* out;  // [N, C1 + C2, H, W] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t c1, c2, h, w, oh, ow;
  AxisView y, x;
};

struct UpsampleConcatBackwardArgs {
  const void* grad;  // [N, C1 + C2, H, W] of T
  Strides4 gs;
  void* grad_low;  // [N, C1, h, w] of T, dense, NHWC or NCHW
  Strides4 ls;
  void* grad_skip;  // [N, C2, H, W] of T, likewise
  Strides4 ss;
  int64_t c1, c2, h, w, oh, ow;
  AxisView y, x;
  GatherView gy, gx;
  int64_t longest;  // most output rows that read one row of low
};

struct UpsampleConcatTable {
  int64_t (*scratch_bytes)(const UpsampleConcatArgs& args);
  // output rows [begin, end) of the flattened N x H
  void (*run[kNumDTypes])(const UpsampleConcatArgs& args, int64_t begin, int64_t end, char* scratch);
  int64_t (*backward_scratch_bytes)(const UpsampleConcatBackwardArgs& args);
  // rows [begin, end) of the flattened N x h
  void (*backward_low[kNumDTypes])(const UpsampleConcatBackwardArgs& args, int64_t begin, int64_t end, char* scratch);
  // rows [begin, end) of the flattened N x H
  void (*backward_skip[kNumDTypes])(const UpsampleConcatBackwardArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(UpsampleConcatTable, upsample_concat_table)
// float32 alone, for networks: a library that has no more is linked without the other dtypes
LITESEG_TABLE(UpsampleConcatTable, upsample_concat_float_table)
