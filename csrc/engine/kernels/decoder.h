// What the plan hands to the decoder kernel of the chosen instruction set.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct DecoderArgs {
  const float* x;     // [N, h, w, c1]
  const float* skip;  // [N, oh, ow, c2], unused where c2 == 0
  AxisView ys, xs;    // of the resize to oh x ow
  // First separable convolution: c1 + c2 -> f1, second: f1 -> f2, classifier: f2 -> k. If lift is set, x's share of the
  // first convolution is computed before upsampling, one GEMM per tap; depthwise1 and pointwise1 then cover skip's
  // channels only.
  const float* lift;        // panels of [9 * f1, c1], or null
  const float* depthwise1;  // [9][c1 + c2 up to whole vectors]
  const float* pointwise1;
  const float* bias1;
  const float* depthwise2;  // [9][f1 up to whole vectors]
  const float* pointwise2;
  const float* bias2;
  const float* classifier;
  const float* classifier_bias;
  int activation1, activation2;
  float* lifted;  // [N, h, w, 9 * f1]
  int64_t lift_tile;
  float* out;  // [N, k, oh, ow]
  Strides4 os;
  int64_t n, c1, c2, h, w, f1, f2, k, oh, ow;
};

struct DecoderTable {
  int64_t (*scratch_bytes)(const DecoderArgs& args);
  // tiles [begin, end) of lift_tile pixels of the flattened N x h x w, before any call of run
  void (*lift)(const DecoderArgs& args, int64_t begin, int64_t end);
  // output rows [begin, end) of the flattened N x oh. Unless `fresh`, `scratch` is what the same thread's last
  // call left there
  void (*run)(const DecoderArgs& args, int64_t begin, int64_t end, char* scratch, bool fresh);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(DecoderTable, decoder_table)
