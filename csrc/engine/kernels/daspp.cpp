// daspp - image pooling and projection of an atrous pyramid whose branches are separable convolutions into fp32 maps.
// Replaces: mean, conv2d(1x1), relu, upsample, cat, conv2d(1x1), relu (neither the concatenated map nor the 1x1 branch
//           is ever stored)
// Shapes:   x [N, C, H, W], branches [N, F, H, W], project [Co, branches * F, 1, 1] -> out [N, Co, H, W]
// Traffic:  minimum (N*C*H*W + N*Co*H*W) * sizeof(T) + weights; x is read once more for each branch, and the branches
//           add 2 * N*F*H*W * 4 bytes each, twice that in the deeper pyramid
// Bound:    arithmetic, C*F multiply-adds a pixel and branch
// Layout:   channels innermost, whatever the layouts of x and of the output. The pooled branch is constant over an
//           image, so the sums start from it; the concatenation is the order in which the parts are added
// Numerics: fp32 in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32, float16, bfloat16; every map in between is fp32
#include "engine/kernels/daspp.h"

#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DasppArgs;

struct Scratch {
  ScratchLayout layout;
  int64_t ldf, lds;
  int64_t branch, sums;

  explicit Scratch(const DasppArgs& g) {
    ldf = finish_stride(g.filters);
    lds = finish_stride(g.co);
    branch = layout.take<float>(g.tile * ldf);
    sums = layout.take<float>(g.tile * lds);
  }
};

void pool(const DasppArgs& g, int64_t begin, int64_t end) {
  const int64_t blocks = div_up(g.c, g.pool_channels);
  const Vec scale = set1(1.0f / static_cast<float>(g.h * g.w));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks;
    const int64_t c0 = (item - n * blocks) * g.pool_channels;
    const int64_t c1 = min_i(g.c, c0 + g.pool_channels);
    for (int64_t c = c0; c < c1; c += Vec::width) {
      // per row first: the rounding error of a single chain grows with all pixels
      Vec total = zero();
      for (int64_t y = 0; y < g.h; ++y) {
        const float* row = g.x + (n * g.h + y) * g.w * g.c + c;
        Vec sum = zero();
        for (int64_t x = 0; x < g.w; ++x) {
          sum = add(sum, load_partial(row + x * g.c, c1 - c));
        }
        total = add(total, sum);
      }
      store_partial(g.mean + n * g.c + c, mul(scale, total), c1 - c);
    }
  }
}

void start(const DasppArgs& g, int64_t begin, int64_t end, char* scratch) {
  float* branch = at_offset<float>(scratch, Scratch(g).branch);
  for (int64_t n = begin; n < end; ++n) {
    gemm<float>(1, g.filters, g.c, g.mean + n * g.c, g.c, g.pool, g.pool_bias, branch, g.filters,
                {nullptr, 0, cpu::kRelu, 0.0f});
    gemm<float>(1, g.co, g.filters, branch, g.filters, g.pool_project, g.project_bias, g.start + n * g.start_stride,
                g.start_stride, {nullptr, 0, cpu::kNone, 0.0f});
  }
}

template <typename T>
void project(const DasppArgs& g, int64_t begin, int64_t end, char* scratch) {
  const Scratch s(g);
  float* branch = at_offset<float>(scratch, s.branch);
  float* sums = at_offset<float>(scratch, s.sums);
  const Output<T> out{static_cast<T*>(g.out), g.os, nullptr, {}, g.co, g.h, g.w, cpu::kRelu, 0.0f};
  const int64_t plane = g.h * g.w;
  const int64_t tiles = div_up(plane, g.tile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / tiles;
    const int64_t p0 = n * plane + (item - n * tiles) * g.tile;
    const int64_t p1 = min_i(p0 + g.tile, (n + 1) * plane);
    const float* bias = g.start + n * g.start_stride;
    const float* before = nullptr;
    const auto add_product = [&](const float* a, int64_t lda, int64_t channels, const float* weight) {
      gemm<float>(p1 - p0, g.co, channels, a, lda, weight, bias, sums, s.lds, {before, s.lds, cpu::kNone, 0.0f});
      before = sums;
      bias = g.zeros;
    };
    for (int64_t i = 0; i < g.count; ++i) {
      const cpu::Projected& part = g.summands[i];
      add_product(part.map + p0 * part.channels, part.channels, part.channels, part.weight);
    }
    if (g.point != nullptr) {
      gemm<float>(p1 - p0, g.filters, g.c, g.x + p0 * g.c, g.c, g.point, g.point_bias, branch, s.ldf,
                  {nullptr, 0, cpu::kRelu, 0.0f});
      add_product(branch, s.ldf, g.filters, g.point_project);
    }
    for_each_row(p0, p1, g.h, g.w, [&](int64_t image, int64_t y, int64_t x, int64_t count, int64_t offset) {
      finish_row(out, sums + offset * s.lds, s.lds, image, y, x, count);
    });
  }
}

int64_t scratch_bytes(const DasppArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::DasppTable daspp_table = {
    scratch_bytes,
    pool,
    start,
    {project<float>, project<f16>, project<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
