// What the plan hands to the stem kernel of the chosen instruction set.
#pragma once

#include "types.h"

namespace liteseg::cpu {

// dense 3x3 convolution of few channels with padding 1
struct DenseConv {
  const float* x;  // [N, C, H, W]
  Strides4 xs;
  const float* weight;  // panels of [hidden, 3 * 3 * C], k in the order of rows, columns, channels
  const float* bias;    // [hidden], padded with zeros to whole panels
  int64_t c, h, w, hidden, oh, ow, stride;
  int64_t less_top, less_left;  // of the padding: 1 where that edge has none
  int activation;
};

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
  // output rows [begin, end) of the flattened N x Ho. Unless `fresh`, `scratch` is as the same thread's last call left
  // it
  void (*run)(const StemArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

namespace liteseg::scalar {
extern const cpu::StemTable stem_table;
}
namespace liteseg::avx2 {
extern const cpu::StemTable stem_table;
}
namespace liteseg::avx512 {
extern const cpu::StemTable stem_table;
}
