// Stem of a network: dense 3x3 convolution of few channels, 3x3 depthwise, pointwise, in one pass over rows.
// Replaces: conv2d(3x3), activation, conv2d(groups), activation, conv2d(1x1) (neither map in between is ever stored)
// Shapes:   x [N, C, H, W] -> out [N, Ho, Wo, Co]; the dense convolution has padding 1 and any stride
// Traffic:  minimum (N*C*H*W + N*Co*Ho*Wo) * 4; eager adds 4*N*hidden*Ho*Wo*4
// Bound:    arithmetic
// Layout:   three rows of the dense map stay in a ring between zero columns for the depthwise part
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32
#include "engine/kernels/stem.h"

#include "engine/blocks/dense_rows.h"
#include "engine/blocks/depthwise.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::StemArgs;

struct Scratch {
  ScratchLayout layout;
  DenseScratch dense;
  int64_t tile;
  int64_t a;

  explicit Scratch(const StemArgs& g) : dense(g.conv, layout) {
    tile = 4 * kRows;
    a = layout.take<float>(tile * dense.ldh);
  }
};

void run(const StemArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  DenseRows source(g.conv, s.dense, 0.0f, scratch, fresh);
  float* a = at_offset<float>(scratch, s.a);
  const int64_t ldh = s.dense.ldh;
  const int64_t hidden = g.conv.hidden;
  const int64_t oh = g.conv.oh;
  const int64_t ow = g.conv.ow;
  const DepthwiseRow geometry{
      hidden, ow + 2, kDenseTaps, kDenseTaps, 1, 0, 1, ldh, g.depthwise_bias, g.depthwise_activation, 0.0f};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / oh;
    const int64_t oy = row - n * oh;
    const float* rows[kDenseTaps];
    int64_t taps[kDenseTaps];
    int64_t count = 0;
    for (int64_t i = 0; i < kDenseTaps; ++i) {
      const int64_t y = oy - 1 + i;
      if (y >= 0 && y < oh) {
        rows[count] = source.row(n, y);
        taps[count++] = i;
      }
    }
    for (int64_t x = 0; x < ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, ow - x);
      depthwise_run(rows, taps, count, geometry, g.depthwise, x, x + pixels, a, ldh);
      gemm<float>(pixels, g.co, hidden, a, ldh, g.project, g.project_bias, g.out + (row * ow + x) * g.co, g.co,
                  {nullptr, 0, cpu::kNone, 0.0f});
    }
  }
}

int64_t scratch_bytes(const StemArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::StemTable stem_table = {scratch_bytes, run};

}  // namespace liteseg::LITESEG_ISA
