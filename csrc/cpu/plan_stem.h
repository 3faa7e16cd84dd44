// What the plan hands to the stem kernel of the chosen instruction set.
#pragma once

#include "types.h"

namespace liteseg::cpu {

// dense 3x3 convolution, then a 3x3 depthwise convolution of stride 1 and a pointwise one
struct StemArgs {
  const float* x;  // [N, C, H, W]
  Strides4 xs;
  const float* conv;       // panels of [hidden, 3 * 3 * C], k in the order of rows, columns, channels
  const float* conv_bias;  // [hidden], padded with zeros to whole panels
  const float* depthwise;  // [9][hidden]
  const float* depthwise_bias;
  const float* project;  // panels of [Co, hidden]
  const float* project_bias;
  float* out;  // [N, Ho, Wo, Co]
  int64_t n, c, h, w, hidden, co, oh, ow;
  int64_t stride;  // of the dense convolution, padding 1
  int conv_activation, depthwise_activation;
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
