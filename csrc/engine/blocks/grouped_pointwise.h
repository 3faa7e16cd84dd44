// What a grouped 1x1 convolution (grouped.h) is computed from.
#pragma once

#include "engine/types.h"

namespace liteseg::cpu {

// columns of a panel of grouped weights, in vectors; the last panel of a group may have fewer
constexpr int64_t kGroupedVectors = 3;

// a grouped 1x1 convolution; group i has the panels at i * weight_stride and the bias at i * bias_stride
struct GroupedPointwise {
  int64_t groups, in, out;  // channels of one group
  const float* weight;      // panels of [out, in], as grouped.h describes
  int64_t weight_stride;
  const float* bias;  // [out], padded with zeros to whole vectors
  int64_t bias_stride;
};

}  // namespace liteseg::cpu
