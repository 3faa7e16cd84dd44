// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct UpsampleArgmaxArgs {
  const void* logits;  // [N, K, h, w] of T
  Strides4 ls;
  uint8_t* out;  // [N, H, W], dense
  int64_t k, h, w, oh, ow;
  AxisView y, x;
};

struct UpsampleArgmaxTable {
  int64_t (*scratch_bytes)(const UpsampleArgmaxArgs& args);
  // output rows [begin, end) of the flattened N x H
  void (*run[kNumDTypes])(const UpsampleArgmaxArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(UpsampleArgmaxTable, upsample_argmax_table)
// float32 alone, for networks: a library that has no more is linked without the other dtypes
LITESEG_TABLE(UpsampleArgmaxTable, upsample_argmax_float_table)
