// What the plan hands to the kernel of a stem with pooling, of the chosen instruction set.
#pragma once

#include "engine/blocks/dense_conv.h"
#include "engine/runtime/isa_list.h"

namespace liteseg::cpu {

// dense 3x3 convolution, then 3x3 max pooling of stride 2 and padding 1
struct StemPoolArgs {
  DenseConv conv;
  float* out;  // [N, Ho, Wo, hidden]
  int64_t oh, ow;
};

struct StemPoolTable {
  int64_t (*scratch_bytes)(const StemPoolArgs& args);
  // output rows [begin, end) of the flattened N x Ho. Unless `fresh`, `scratch` is what the same thread's last
  // call left there
  void (*run)(const StemPoolArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(StemPoolTable, stem_pool_table)
