// 1x1 convolution of bytes with an activation that is none below zero.
// Replaces: conv2d(1x1), activation
// Shapes:   x [N, H, W, C] -> out [N, H, W, Co]
// Traffic:  minimum N*H*W*(C + Co) + C*Co
// Bound:    arithmetic
// Layout:   tiles of pixels; each thread reads the weights once for every tile
// Numerics: as in inverted_residual.cpp
#include "engine/kernels/int8/tables.h"

#include "engine/blocks/gemm_int8.h"

namespace liteseg::LITESEG_ISA {
namespace {

void run(const cpu::Int8PointwiseArgs& g, int64_t begin, int64_t end) {
  const int64_t ldx = div_up(g.c, cpu::kBytePixel) * cpu::kBytePixel;
  const int64_t ldo = div_up(g.co, cpu::kBytePixel) * cpu::kBytePixel;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t p0 = t * g.tile;
    const int64_t count = min_i(g.tile, g.pixels - p0);
    const StoreBytes store{g.out + p0 * ldo, ldo, g.scale, 0, nullptr, 0, 0.0f, 0};
    for (int64_t n = 0; n < g.co; n += kPanel) {
      byte_columns(n, g.co, count, g.c, g.x + p0 * ldx, ldx, g.weight, g.bias, store);
    }
  }
}

}  // namespace

const cpu::Int8PointwiseTable int8_pointwise_table = {run};

}  // namespace liteseg::LITESEG_ISA
