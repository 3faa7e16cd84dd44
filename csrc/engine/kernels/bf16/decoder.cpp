// Decoder in bfloat16: bilinear resize, concatenation, two separable 3x3 convolutions and the classifier, in one pass.
// Replaces: interpolate, cat, 2 x (conv2d(groups), conv2d(1x1), activation), conv2d(1x1); only the logits are stored
// Shapes:   x [N, h, w, c1], skip [N, oh, ow, c2] -> logits [N, k, oh, ow]; padding 1, stride 1
// Traffic:  minimum (N*c1*h*w + N*c2*oh*ow) * 2 + N*k*oh*ow*4
// Bound:    arithmetic
// Layout:   as kernels/decoder.cpp, lifting included. Both rings are float: resizing and the depthwise parts, small
//           beside the products, need no widening then
// Numerics: products of bf16, everything else fp32, in one fixed order per output; the logits are rounded to bf16 only
//           where they are the result
// Limits:   bfloat16
#include "engine/kernels/bf16/tables.h"

#include "engine/blocks/pairs.h"
#include "engine/kernels/decoder_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

struct HalfProducts {
  using Value = bf16;
  using Args = cpu::DecoderBf16Args;
  static constexpr int64_t kTile = 8 * kRows;

  static LITESEG_INLINE const cpu::DecoderArgs& sums(const Args& args) {
    return args.sums;
  }
  static LITESEG_INLINE const bf16* x(const Args& args) {
    return args.x;
  }
  static LITESEG_INLINE const bf16* skip(const Args& args) {
    return args.skip;
  }
  static LITESEG_INLINE int64_t pixel(int64_t c) {
    return padded(c);
  }
  static LITESEG_INLINE int64_t skip_pixel(int64_t c) {
    return padded(c);
  }
  static LITESEG_INLINE int64_t rows(int64_t k) {
    return words_of(k);
  }
  static LITESEG_INLINE Vec load(const Args&, const bf16* p, int64_t) {
    return LITESEG_ISA::load(p);
  }
  static LITESEG_INLINE void to_floats(int64_t pixels, int64_t n, int64_t k, const bf16* a, int64_t lda,
                                       const float* panels, const float* bias, float* out, int64_t ldo,
                                       const float* residual, int activation) {
    dot_to_float(pixels, n, k, 0, k, a, lda, panels, bias, out, ldo, residual, activation);
  }
  static LITESEG_INLINE void to_values(int64_t pixels, int64_t n, int64_t k, const bf16* a, int64_t lda,
                                       const float* panels, const float* bias, bf16* out, int64_t ldo, int activation) {
    dot_to_half(pixels, n, k, a, lda, panels, bias, out, ldo, nullptr, 0, activation);
  }
  static LITESEG_INLINE void classify(const Args& args, int64_t n, int64_t y, int64_t x, int64_t pixels, const bf16* b,
                                      int64_t ldb, float* sums) {
    const cpu::DecoderArgs& g = args.sums;
    if (args.scores != nullptr) {
      to_floats(pixels, g.k, g.f2, b, ldb, g.classifier, g.classifier_bias,
                args.scores + ((n * g.oh + y) * g.ow + x) * g.k, g.k, nullptr, cpu::kNone);
      return;
    }
    const Output<bf16> logits{args.logits, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
    const int64_t lds = finish_stride(g.k);
    to_floats(pixels, g.k, g.f2, b, ldb, g.classifier, g.classifier_bias, sums, lds, nullptr, cpu::kNone);
    finish_row(logits, sums, lds, n, y, x, pixels);
  }
};

}  // namespace

const cpu::DecoderBf16Table decoder_bf16_table = {scratch_bytes<HalfProducts>, lift<HalfProducts>, run<HalfProducts>};

}  // namespace liteseg::LITESEG_ISA
