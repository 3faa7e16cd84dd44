// What the registered op hands to the kernel of the chosen instruction set.
#pragma once

#include "types.h"

namespace liteseg::cpu {

// a grouped 1x1 convolution; group i has the panels at i * weight_stride and the bias at i * bias_stride
struct GroupedPointwise {
  int64_t groups, in, out;  // channels of one group
  const float* weight;      // panels of [out, in]
  int64_t weight_stride;
  const float* bias;  // [out], padded with zeros to whole panels
  int64_t bias_stride;
};

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
  void* out;               // [N, Co, Ho, Wo] of T, dense, NHWC or NCHW
  Strides4 os;
  int64_t n, c, h, w, bottleneck, branch, oh, ow;
  int64_t sh, sw, dh, dw;
  int64_t tile;  // output pixels of one image worked on at a time
};

struct ShuffleUnitTable {
  int64_t (*scratch_bytes)(const ShuffleUnitArgs& args);
  // tiles [begin, end); each image has ceil(Ho * Wo / tile) of them
  void (*run[kNumDTypes])(const ShuffleUnitArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

namespace liteseg::scalar {
extern const cpu::ShuffleUnitTable shuffle_unit_table;
}
namespace liteseg::avx2 {
extern const cpu::ShuffleUnitTable shuffle_unit_table;
}
namespace liteseg::avx512 {
extern const cpu::ShuffleUnitTable shuffle_unit_table;
}
