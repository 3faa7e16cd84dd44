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

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/pairs.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/decoder_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DecoderArgs;
using Args = cpu::DecoderBf16Args;

struct Scratch {
  ScratchLayout layout;
  int64_t c;              // channels of the concatenation, without those of x where they are lifted
  int64_t ld1, ld2, ld3;  // values of a pixel of the concatenation and of the two convolutions' outputs
  int64_t tile;
  int64_t blend, ring1, ring2, a, b, sums, tags1, tags2;

  explicit Scratch(const DecoderArgs& g) {
    c = (g.lift == nullptr ? g.c1 : 0) + g.c2;
    ld1 = whole_vectors(c);
    ld2 = whole_vectors(g.f1);
    ld3 = whole_vectors(g.f2);
    tile = 8 * kRows;
    blend = layout.take<float>(g.w * (g.lift == nullptr ? padded(g.c1) : kTaps * g.f1) + Vec::width);
    ring1 = layout.take<float>(kTaps * (g.ow + 2) * ld1);
    ring2 = layout.take<float>(kTaps * (g.ow + 2) * ld2);
    a = layout.take<bf16>(tile * max_i(ld1, ld2));
    b = layout.take<bf16>(tile * ld3);
    sums = layout.take<float>(tile * finish_stride(g.k));
    tags1 = layout.take<int64_t>(kTaps);
    tags2 = layout.take<int64_t>(kTaps);
  }
};

class Rows {
 public:
  Rows(const Args& args, const Scratch& s, char* scratch, bool fresh)
      : args_(args),
        g_(args.sums),
        s_(s),
        scratch_(scratch),
        tags1_(at_offset<int64_t>(scratch, s.tags1)),
        tags2_(at_offset<int64_t>(scratch, s.tags2)) {
    if (!fresh) {
      return;
    }
    clear_tags(tags1_, kTaps);
    clear_tags(tags2_, kTaps);
    zero_words(at_offset<Word>(scratch, s.ring1), kTaps * (g_.ow + 2) * s.ld1);
    zero_words(at_offset<Word>(scratch, s.ring2), kTaps * (g_.ow + 2) * s.ld2);
  }

  // the rows of the first convolution's output around row y, and which taps they are; returns their number
  int64_t around2(int64_t n, int64_t y, const float** rows, int64_t* taps) {
    return around(y, rows, taps, [&](int64_t at) { return row2(n, at); });
  }

 private:
  template <typename Row>
  int64_t around(int64_t y, const float** rows, int64_t* taps, const Row& row) {
    int64_t count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t at = y - 1 + i;
      if (at >= 0 && at < g_.oh) {
        rows[count] = row(at);
        taps[count++] = i;
      }
    }
    return count;
  }

  const float* row1(int64_t n, int64_t y) {
    float* row = at_offset<float>(scratch_, s_.ring1) + y % kTaps * (g_.ow + 2) * s_.ld1;
    if (tags1_[y % kTaps] == n * g_.oh + y) {
      return row;
    }
    tags1_[y % kTaps] = n * g_.oh + y;
    float* dst = row + s_.ld1;
    if (g_.lift == nullptr) {
      const int64_t ldx = padded(g_.c1);
      resize_row(args_.x + n * g_.h * g_.w * ldx, ldx, g_, y, at_offset<float>(scratch_, s_.blend), dst, s_.ld1);
      dst += g_.c1;
    }
    const int64_t lds = padded(g_.c2);
    const bf16* skip = args_.skip + (n * g_.oh + y) * g_.ow * lds;
    for (int64_t x = 0; x < g_.ow && g_.c2 > 0; ++x, dst += s_.ld1, skip += lds) {
      for (int64_t c = 0; c < g_.c2; c += Vec::width) {
        store_partial(dst + c, load(skip + c), g_.c2 - c);
      }
    }
    return row;
  }

  const float* row2(int64_t n, int64_t y) {
    float* row = at_offset<float>(scratch_, s_.ring2) + y % kTaps * (g_.ow + 2) * s_.ld2;
    if (tags2_[y % kTaps] == n * g_.oh + y) {
      return row;
    }
    tags2_[y % kTaps] = n * g_.oh + y;
    if (g_.lift != nullptr) {
      resize_lifted_row(g_, n, y, at_offset<float>(scratch_, s_.blend), row + s_.ld2, s_.ld2);
    }
    const float* rows[kTaps];
    int64_t taps[kTaps];
    const int64_t count = s_.c == 0 ? 0 : around(y, rows, taps, [&](int64_t at) { return row1(n, at); });
    const DepthwiseRow geometry{s_.ld1, g_.ow + 2, kTaps, kTaps, 1, 0, 1, s_.ld1, nullptr, cpu::kNone, 0.0f};
    bf16* a = at_offset<bf16>(scratch_, s_.a);
    for (int64_t x = 0; x < g_.ow; x += s_.tile) {
      const int64_t pixels = min_i(s_.tile, g_.ow - x);
      if (s_.c > 0) {
        depthwise_run(rows, taps, count, geometry, g_.depthwise1, x, x + pixels, a, s_.ld1);
      }
      float* out = row + (x + 1) * s_.ld2;
      dot_to_float(pixels, g_.f1, s_.c, 0, s_.c, a, s_.ld1, g_.pointwise1, g_.bias1, out, s_.ld2,
                   g_.lift == nullptr ? nullptr : out, g_.activation1);
    }
    return row;
  }

  const Args& args_;
  const DecoderArgs& g_;
  const Scratch& s_;
  char* scratch_;
  int64_t* tags1_;
  int64_t* tags2_;
};

void lift(const Args& args, int64_t begin, int64_t end) {
  // zero in place of a bias
  alignas(64) static const float zeros[kPanel] = {};
  const DecoderArgs& g = args.sums;
  const int64_t columns = kTaps * kTaps * g.f1;
  const int64_t words = words_of(g.c1);
  const int64_t p0 = begin * g.lift_tile;
  const int64_t p1 = min_i(end * g.lift_tile, g.n * g.h * g.w);
  const int64_t ldx = padded(g.c1);
  for (int64_t n = 0; n < columns; n += kPanel) {
    dot_to_float(p1 - p0, min_i(kPanel, columns - n), g.c1, 0, g.c1, args.x + p0 * ldx, ldx, g.lift + n * words, zeros,
                 g.lifted + p0 * columns + n, columns, nullptr, cpu::kNone);
  }
}

void run(const Args& args, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const DecoderArgs& g = args.sums;
  const Scratch s(g);
  Rows source(args, s, scratch, fresh);
  const DepthwiseRow geometry{s.ld2, g.ow + 2, kTaps, kTaps, 1, 0, 1, s.ld2, nullptr, cpu::kNone, 0.0f};
  const Output<bf16> logits{args.logits, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
  bf16* a = at_offset<bf16>(scratch, s.a);
  bf16* b = at_offset<bf16>(scratch, s.b);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t y = row - n * g.oh;
    const float* rows[kTaps];
    int64_t taps[kTaps];
    const int64_t count = source.around2(n, y, rows, taps);
    for (int64_t x = 0; x < g.ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, g.ow - x);
      depthwise_run(rows, taps, count, geometry, g.depthwise2, x, x + pixels, a, s.ld2);
      dot_to_half(pixels, g.f2, g.f1, a, s.ld2, g.pointwise2, g.bias2, b, s.ld3, nullptr, 0, g.activation2);
      float* sums = args.scores != nullptr ? args.scores + (row * g.ow + x) * g.k : at_offset<float>(scratch, s.sums);
      const int64_t lds = args.scores != nullptr ? g.k : finish_stride(g.k);
      dot_to_float(pixels, g.k, g.f2, 0, g.f2, b, s.ld3, g.classifier, g.classifier_bias, sums, lds, nullptr,
                   cpu::kNone);
      if (args.scores == nullptr) {
        finish_row(logits, sums, lds, n, y, x, pixels);
      }
    }
  }
}

int64_t scratch_bytes(const Args& args) {
  return Scratch(args.sums).layout.bytes();
}

}  // namespace

const cpu::DecoderBf16Table decoder_bf16_table = {scratch_bytes, lift, run};

}  // namespace liteseg::LITESEG_ISA
