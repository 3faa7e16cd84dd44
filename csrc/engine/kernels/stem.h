// What the plan hands to the stem kernel of the chosen instruction set.
#pragma once

#include "engine/blocks/dense_conv.h"
#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

// dense 3x3 convolution, then a 3x3 depthwise convolution of stride 1 and a pointwise one
struct StemArgs {
  DenseConv conv;
  const float* depthwise;  // [9][hidden]
  const float* depthwise_bias;
  const float* project;  // panels of [Co, hidden]
  const float* project_bias;
  float* out;  // [N, Ho, Wo, Co], of the dense map's size
  int64_t co;
  int depthwise_activation;
};

struct StemTable {
  int64_t (*scratch_bytes)(const StemArgs& args);
  // output rows [begin, end) of the flattened N x Ho. Unless `fresh`, `scratch` is what the same thread's last
  // call left there
  void (*run)(const StemArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(StemTable, stem_table)
