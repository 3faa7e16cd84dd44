// What the registered ops hand to the kernels of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

enum TargetType : int { kTargetUint8 = 0, kTargetInt32 = 1, kTargetInt64 = 2 };

struct UpsampleCrossEntropyArgs {
  const void* logits;  // [N, K, h, w] of T
  Strides4 ls;
  const void* target;  // [N, H, W]
  TargetType target_type;
  int64_t tn, th, tw;   // its strides
  const float* weight;  // [K]
  float weight_sum;
  int64_t ignore_index;
  float smoothing;
  int64_t k, h, w, oh, ow;
  AxisView y, x;
  // forward: sums of each output row [N * H], and, unless null, the losses [N, H, W]
  double* row_loss;
  double* row_weight;
  float* map;
  // backward: factor of each pixel's loss, [N, H, W] with strides that may be 0
  const float* scale;
  int64_t sn, sh, sw;
  GatherView gy;
  int64_t longest;    // most output rows that read one row of logits
  void* grad_logits;  // [N, K, h, w] of T, dense, NHWC or NCHW
  Strides4 gs;
};

struct UpsampleCrossEntropyTable {
  int64_t (*scratch_bytes)(const UpsampleCrossEntropyArgs& args);
  // output rows [begin, end) of the flattened N x H
  void (*forward[kNumDTypes])(const UpsampleCrossEntropyArgs& args, int64_t begin, int64_t end, char* scratch);
  int64_t (*backward_scratch_bytes)(const UpsampleCrossEntropyArgs& args);
  // rows [begin, end) of the flattened N x h
  void (*backward[kNumDTypes])(const UpsampleCrossEntropyArgs& args, int64_t begin, int64_t end, char* scratch);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(UpsampleCrossEntropyTable, upsample_cross_entropy_table)
