// 1x1 convolution of a whole map with an activation.
// Replaces: conv2d(1x1), activation
// Shapes:   x [N, H, W, C] -> out [N, H, W, Co]
// Traffic:  minimum (N*C*H*W + N*Co*H*W) * 4 + weights
// Bound:    memory where Co is small
// Numerics: fp32 multiply-adds in the order of the channels
// Limits:   float32
#pragma once

#include "gemm.h"
#include "plan_pointwise.h"

namespace liteseg::LITESEG_ISA {
namespace {

void run(const cpu::PointwiseArgs& g, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t p = t * g.tile;
    gemm<float>(min_i(g.tile, g.pixels - p), g.co, g.c, g.x + p * g.c, g.c, g.weight, g.bias, g.out + p * g.co, g.co,
                {nullptr, 0, g.activation, 0.0f});
  }
}

}  // namespace

const cpu::PointwiseTable pointwise_table = {run};

}  // namespace liteseg::LITESEG_ISA
