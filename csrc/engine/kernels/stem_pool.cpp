// Stem of a network: dense 3x3 convolution of few channels and 3x3 max pooling of stride 2, in one pass over rows.
// Replaces: conv2d(3x3), activation, max_pool2d(3, 2, 1) (the map in between is never stored)
// Shapes:   x [N, C, H, W] -> out [N, Ho, Wo, hidden]; the dense convolution has padding 1 and any stride
// Traffic:  minimum (N*C*H*W + N*hidden*Ho*Wo) * 4; eager adds 8*N*hidden*Ho*Wo*4
// Bound:    arithmetic
// Layout:   three rows of the dense map stay in a ring between columns of minus infinity
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads; NaN wins
//           over every number, as in torch
// Limits:   float32
#include "engine/kernels/stem_pool.h"

#include "engine/blocks/dense_rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::StemPoolArgs;

struct Scratch {
  ScratchLayout layout;
  DenseScratch dense;

  explicit Scratch(const StemPoolArgs& g) : dense(g.conv, layout) {}
};

void run(const StemPoolArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  DenseRows source(g.conv, s.dense, -__builtin_inff(), scratch, fresh);
  const int64_t ldh = s.dense.ldh;
  const int64_t channels = g.conv.hidden;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const float* rows[kDenseTaps];
    int64_t count = 0;
    for (int64_t y = max_i(0, 2 * oy - 1); y <= min_i(g.conv.oh - 1, 2 * oy + 1); ++y) {
      rows[count++] = source.row(n, y);
    }
    float* out = g.out + row * g.ow * channels;
    for (int64_t x = 0; x < g.ow; ++x) {
      for (int64_t c = 0; c < channels; c += Vec::width) {
        Vec best = set1(-__builtin_inff());
        for (int64_t i = 0; i < count; ++i) {
          const float* at = rows[i] + 2 * x * ldh + c;
          for (int64_t j = 0; j < kDenseTaps; ++j) {
            best = maximum_or_nan(load(at + j * ldh), best);
          }
        }
        store_partial(out + x * channels + c, best, channels - c);
      }
    }
  }
}

int64_t scratch_bytes(const StemPoolArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::StemPoolTable stem_pool_table = {scratch_bytes, run};

}  // namespace liteseg::LITESEG_ISA
