// Decoder: bilinear resize, concatenation, two separable 3x3 convolutions and the classifier, in one pass over rows.
// Replaces: interpolate, cat, 2 x (conv2d(groups), conv2d(1x1), activation), conv2d(1x1); only the logits are stored
// Shapes:   x [N, h, w, c1], skip [N, oh, ow, c2] -> out [N, k, oh, ow]; padding 1, stride 1
// Traffic:  minimum (N*c1*h*w + N*c2*oh*ow + N*k*oh*ow) * 4; eager adds about 2*N*(2*c1 + c2 + 2*f1 + f2)*oh*ow*4
// Bound:    arithmetic. Resizing, the first depthwise part (both work on each channel for itself) and the first
//           pointwise part are linear, so where the map grows enough, x goes through nine small products at its own
//           size, one for each tap, and the sum over the taps is taken of the resized results: 9 * c1 * f1
//           multiply-adds for a pixel of x instead of c1 * (f1 + 9) for a pixel of the output
// Layout:   a ring of three rows holds the concatenation, a second one the first convolution's output, both between
//           zero columns and with pixels on whole vectors. Bands recompute two rows of the second ring at their edges
// Numerics: fp32 multiply-adds in one fixed order per output, whatever the tiling and the number of threads
// Limits:   float32
#include "engine/kernels/decoder.h"

#include "engine/kernels/decoder_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

struct FloatProducts {
  using Value = float;
  using Args = cpu::DecoderArgs;
  static constexpr int64_t kTile = 4 * kRows;

  static LITESEG_INLINE const Args& sums(const Args& args) {
    return args;
  }
  static LITESEG_INLINE const float* x(const Args& args) {
    return args.x;
  }
  static LITESEG_INLINE const float* skip(const Args& args) {
    return args.skip;
  }
  static LITESEG_INLINE int64_t pixel(int64_t c) {
    return c;
  }
  static LITESEG_INLINE int64_t skip_pixel(int64_t c) {
    return c;
  }
  static LITESEG_INLINE int64_t rows(int64_t k) {
    return k;
  }
  static LITESEG_INLINE Vec load(const Args&, const float* p, int64_t count) {
    return load_partial(p, count);
  }
  static LITESEG_INLINE void to_floats(int64_t pixels, int64_t n, int64_t k, const float* a, int64_t lda,
                                       const float* panels, const float* bias, float* out, int64_t ldo,
                                       const float* residual, int activation) {
    gemm<float>(pixels, n, k, a, lda, panels, bias, out, ldo, {residual, ldo, activation, 0.0f});
  }
  static LITESEG_INLINE void to_values(int64_t pixels, int64_t n, int64_t k, const float* a, int64_t lda,
                                       const float* panels, const float* bias, float* out, int64_t ldo,
                                       int activation) {
    to_floats(pixels, n, k, a, lda, panels, bias, out, ldo, nullptr, activation);
  }
  static LITESEG_INLINE void classify(const Args& g, int64_t n, int64_t y, int64_t x, int64_t pixels, const float* b,
                                      int64_t ldb, float* sums) {
    const Output<float> out{g.out, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
    const int64_t p = (n * g.oh + y) * g.ow + x;
    project_tile(out, p, p + pixels, b, ldb, g.f2, g.classifier, g.classifier_bias, sums);
  }
};

}  // namespace

const cpu::DecoderTable decoder_table = {scratch_bytes<FloatProducts>, lift<FloatProducts>, run<FloatProducts>};

}  // namespace liteseg::LITESEG_ISA
