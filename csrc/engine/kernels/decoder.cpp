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

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/decoder_parts.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::DecoderArgs;

struct Scratch {
  ScratchLayout layout;
  int64_t c;              // channels of the concatenation, without those of x where they are lifted
  int64_t ld1, ld2, ld3;  // floats of a pixel of the concatenation and of the two convolutions' outputs
  int64_t tile;
  int64_t blend, ring1, ring2, a, b, sums, tags1, tags2;

  explicit Scratch(const DecoderArgs& g) {
    c = (g.lift == nullptr ? g.c1 : 0) + g.c2;
    ld1 = whole_vectors(c);
    ld2 = whole_vectors(g.f1);
    ld3 = whole_vectors(g.f2);
    tile = 4 * kRows;
    blend = layout.take<float>(g.w * (g.lift == nullptr ? g.c1 : kTaps * g.f1) + Vec::width);
    ring1 = layout.take<float>(kTaps * (g.ow + 2) * ld1);
    ring2 = layout.take<float>(kTaps * (g.ow + 2) * ld2);
    a = layout.take<float>(tile * max_i(ld1, ld2));
    b = layout.take<float>(tile * ld3);
    sums = layout.take<float>(tile * finish_stride(g.k));
    tags1 = layout.take<int64_t>(kTaps);
    tags2 = layout.take<int64_t>(kTaps);
  }
};

class Rows {
 public:
  Rows(const DecoderArgs& g, const Scratch& s, char* scratch, bool fresh)
      : g_(g),
        s_(s),
        scratch_(scratch),
        tags1_(at_offset<int64_t>(scratch, s.tags1)),
        tags2_(at_offset<int64_t>(scratch, s.tags2)) {
    if (!fresh) {
      return;
    }
    clear_tags(tags1_, kTaps);
    clear_tags(tags2_, kTaps);
    float* rings[2] = {at_offset<float>(scratch, s.ring1), at_offset<float>(scratch, s.ring2)};
    const int64_t floats[2] = {kTaps * (g.ow + 2) * s.ld1, kTaps * (g.ow + 2) * s.ld2};
    for (int r = 0; r < 2; ++r) {
      for (int64_t i = 0; i < floats[r]; ++i) {
        rings[r][i] = 0.0f;
      }
    }
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
      const float* image = g_.x + n * g_.h * g_.w * g_.c1;
      resize_row(image, g_.c1, g_, y, at_offset<float>(scratch_, s_.blend), dst, s_.ld1);
      dst += g_.c1;
    }
    const float* skip = g_.skip + (n * g_.oh + y) * g_.ow * g_.c2;
    for (int64_t x = 0; x < g_.ow && g_.c2 > 0; ++x, dst += s_.ld1, skip += g_.c2) {
      for (int64_t c = 0; c < g_.c2; c += Vec::width) {
        store_partial(dst + c, load_partial(skip + c, g_.c2 - c), g_.c2 - c);
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
    float* a = at_offset<float>(scratch_, s_.a);
    for (int64_t x = 0; x < g_.ow; x += s_.tile) {
      const int64_t pixels = min_i(s_.tile, g_.ow - x);
      if (s_.c > 0) {
        depthwise_run(rows, taps, count, geometry, g_.depthwise1, x, x + pixels, a, s_.ld1);
      }
      float* out = row + (x + 1) * s_.ld2;
      gemm<float>(pixels, g_.f1, s_.c, a, s_.ld1, g_.pointwise1, g_.bias1, out, s_.ld2,
                  {g_.lift == nullptr ? nullptr : out, s_.ld2, g_.activation1, 0.0f});
    }
    return row;
  }

  const DecoderArgs& g_;
  const Scratch& s_;
  char* scratch_;
  int64_t* tags1_;
  int64_t* tags2_;
};

void lift(const DecoderArgs& g, int64_t begin, int64_t end) {
  // zero in place of a bias
  alignas(64) static const float zeros[kPanel] = {};
  const int64_t columns = kTaps * kTaps * g.f1;
  const int64_t p0 = begin * g.lift_tile;
  const int64_t p1 = min_i(end * g.lift_tile, g.n * g.h * g.w);
  for (int64_t n = 0; n < columns; n += kPanel) {
    const int64_t cols = min_i(kPanel, columns - n);
    gemm<float>(p1 - p0, cols, g.c1, g.x + p0 * g.c1, g.c1, g.lift + n * g.c1, zeros, g.lifted + p0 * columns + n,
                columns, {nullptr, 0, cpu::kNone, 0.0f});
  }
}

void run(const DecoderArgs& g, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const Scratch s(g);
  Rows source(g, s, scratch, fresh);
  const DepthwiseRow geometry{s.ld2, g.ow + 2, kTaps, kTaps, 1, 0, 1, s.ld2, nullptr, cpu::kNone, 0.0f};
  const Output<float> out{g.out, g.os, nullptr, {}, g.k, g.oh, g.ow, cpu::kNone, 0.0f};
  float* a = at_offset<float>(scratch, s.a);
  float* b = at_offset<float>(scratch, s.b);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const float* rows[kTaps];
    int64_t taps[kTaps];
    const int64_t count = source.around2(n, row - n * g.oh, rows, taps);
    for (int64_t x = 0; x < g.ow; x += s.tile) {
      const int64_t pixels = min_i(s.tile, g.ow - x);
      depthwise_run(rows, taps, count, geometry, g.depthwise2, x, x + pixels, a, s.ld2);
      gemm<float>(pixels, g.f2, g.f1, a, s.ld2, g.pointwise2, g.bias2, b, s.ld3, {nullptr, 0, g.activation2, 0.0f});
      project_tile(out, row * g.ow + x, row * g.ow + x + pixels, b, s.ld3, g.f2, g.classifier, g.classifier_bias,
                   at_offset<float>(scratch, s.sums));
    }
  }
}

int64_t scratch_bytes(const DecoderArgs& args) {
  return Scratch(args).layout.bytes();
}

}  // namespace

const cpu::DecoderTable decoder_table = {scratch_bytes, lift, run};

}  // namespace liteseg::LITESEG_ISA
