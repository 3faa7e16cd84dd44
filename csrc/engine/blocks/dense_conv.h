// What the rows of a dense 3x3 convolution of few channels (dense_rows.h) are computed from.
#pragma once

#include "engine/types.h"

namespace liteseg::cpu {

// dense 3x3 convolution of few channels with padding 1
struct DenseConv {
  const float* x;  // [N, C, H, W]
  Strides4 xs;
  const float* weight;  // panels of [hidden, 3 * 3 * C], k in the order of rows, columns, channels
  const float* bias;    // [hidden], padded with zeros to whole panels
  int64_t c, h, w, hidden, oh, ow, stride;
  int64_t less_top, less_left;  // 1 if there is no padding at that edge, else 0
  int activation;
};

}  // namespace liteseg::cpu
