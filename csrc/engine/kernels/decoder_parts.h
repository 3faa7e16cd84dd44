// The decoder's kernel, but for how products are computed and how maps are stored: a class P says that.
#pragma once

#include "engine/blocks/depthwise.h"
#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"
#include "engine/kernels/decoder.h"

namespace liteseg::LITESEG_ISA {
namespace {

constexpr int64_t kTaps = 3;

// the packed depthwise weights have whole vectors of the widest instruction set
LITESEG_INLINE int64_t whole_vectors(int64_t channels) {
  return div_up(channels, cpu::kWidestVector) * cpu::kWidestVector;
}

// row y of an image [h, w] of pixels `ldx` apart, resized: c1 channels into pixels ldo apart
template <typename T>
void resize_row(const T* image, int64_t ldx, const cpu::DecoderArgs& g, int64_t y, float* blend, float* out,
                int64_t ldo) {
  const T* top = image + g.ys.i0[y] * g.w * ldx;
  const T* bottom = image + g.ys.i1[y] * g.w * ldx;
  const Vec y0 = set1(g.ys.w0[y]);
  const Vec y1 = set1(g.ys.w1[y]);
  for (int64_t i = 0; i < g.w * ldx; i += Vec::width) {
    const int64_t count = g.w * ldx - i;
    store_partial(blend + i, fma(y1, load_partial(bottom + i, count), mul(y0, load_partial(top + i, count))), count);
  }
  for (int64_t x = 0; x < g.ow; ++x, out += ldo) {
    const float* left = blend + g.xs.i0[x] * ldx;
    const float* right = blend + g.xs.i1[x] * ldx;
    const Vec x0 = set1(g.xs.w0[x]);
    const Vec x1 = set1(g.xs.w1[x]);
    for (int64_t c = 0; c < g.c1; c += Vec::width) {
      const int64_t count = g.c1 - c;
      store_partial(out + c, fma(x1, load_partial(right + c, count), mul(x0, load_partial(left + c, count))), count);
    }
  }
}

// what the lifted map of image n adds to row y of the first convolution, before its bias: pixels ldo apart
void resize_lifted_row(const cpu::DecoderArgs& g, int64_t n, int64_t y, float* blend, float* out, int64_t ldo) {
  // along y: [w][3 columns of taps][f1]
  const int64_t part = kTaps * g.f1;
  const int64_t pixel = kTaps * part;
  const float* image = g.lifted + n * g.h * g.w * pixel;
  const float* sources[2 * kTaps];
  Vec weights[2 * kTaps];
  int count = 0;
  for (int64_t i = 0; i < kTaps; ++i) {
    const int64_t at = y - 1 + i;
    if (at >= 0 && at < g.oh) {
      sources[count] = image + g.ys.i0[at] * g.w * pixel + i * part;
      weights[count++] = set1(g.ys.w0[at]);
      sources[count] = image + g.ys.i1[at] * g.w * pixel + i * part;
      weights[count++] = set1(g.ys.w1[at]);
    }
  }
  for (int64_t x = 0; x < g.w; ++x) {
    for (int64_t c = 0; c < part; c += Vec::width) {
      Vec sum = zero();
      for (int i = 0; i < count; ++i) {
        sum = fma(weights[i], load_partial(sources[i] + x * pixel + c, part - c), sum);
      }
      store_partial(blend + x * part + c, sum, part - c);
    }
  }
  for (int64_t x = 0; x < g.ow; ++x, out += ldo) {
    count = 0;
    for (int64_t i = 0; i < kTaps; ++i) {
      const int64_t at = x - 1 + i;
      if (at >= 0 && at < g.ow) {
        sources[count] = blend + g.xs.i0[at] * part + i * g.f1;
        weights[count++] = set1(g.xs.w0[at]);
        sources[count] = blend + g.xs.i1[at] * part + i * g.f1;
        weights[count++] = set1(g.xs.w1[at]);
      }
    }
    for (int64_t c = 0; c < g.f1; c += Vec::width) {
      Vec sum = zero();
      for (int i = 0; i < count; ++i) {
        sum = fma(weights[i], load_partial(sources[i] + c, g.f1 - c), sum);
      }
      store_partial(out + c, sum, g.f1 - c);
    }
  }
}

// P gives
//   Value           what maps and the left sides of products are made of
//   Args            the kernel's arguments; sums(args) is the part that is alike for all, x(args) and skip(args) the maps
//   pixel(c), skip_pixel(c)  values of a stored pixel of c channels
//   rows(k)         rows of a packed panel for k inputs
//   kTile           pixels that a product is computed for at a time
//   load(args, p, count)  a vector of the map skip, of which `count` channels are left
//   to_floats(pixels, n, k, a, lda, panels, bias, out, ldo, residual, activation), likewise
//   to_values(pixels, n, k, a, lda, panels, bias, out, ldo, activation): out = act(a * panels + bias [+ residual])
//   classify(args, n, y, x, pixels, b, ldb, sums): logits of pixels of one row from the second convolution's output

template <typename P>
struct Scratch {
  ScratchLayout layout;
  int64_t c;              // channels of the concatenation, without those of x where they are lifted
  int64_t ld1, ld2, ld3;  // values of a pixel of the concatenation and of the two convolutions' outputs
  int64_t blend, ring1, ring2, a, b, sums, tags1, tags2;

  explicit Scratch(const cpu::DecoderArgs& g) {
    c = (g.lift == nullptr ? g.c1 : 0) + g.c2;
    ld1 = whole_vectors(c);
    ld2 = whole_vectors(g.f1);
    ld3 = whole_vectors(g.f2);
    blend = layout.take<float>(g.w * (g.lift == nullptr ? P::pixel(g.c1) : kTaps * g.f1) + Vec::width);
    ring1 = layout.take<float>(kTaps * (g.ow + 2) * ld1);
    ring2 = layout.take<float>(kTaps * (g.ow + 2) * ld2);
    a = layout.take<typename P::Value>(P::kTile * max_i(ld1, ld2));
    b = layout.take<typename P::Value>(P::kTile * ld3);
    sums = layout.take<float>(P::kTile * finish_stride(g.k));
    tags1 = layout.take<int64_t>(kTaps);
    tags2 = layout.take<int64_t>(kTaps);
  }
};

template <typename P>
class Rows {
 public:
  Rows(const typename P::Args& args, const Scratch<P>& s, char* scratch, bool fresh)
      : args_(args),
        g_(P::sums(args)),
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
    const int64_t floats[2] = {kTaps * (g_.ow + 2) * s.ld1, kTaps * (g_.ow + 2) * s.ld2};
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

  // row y of the first convolution's output, the column in front of it first
  const float* row2(int64_t n, int64_t y) {
    float* row = at_offset<float>(scratch_, s_.ring2) + y % kTaps * (g_.ow + 2) * s_.ld2;
    if (tags2_[y % kTaps] == n * g_.oh + y) {
      return row;
    }
    tags2_[y % kTaps] = n * g_.oh + y;
    compute_row2(n, y, row);
    return row;
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
      const int64_t ldx = P::pixel(g_.c1);
      resize_row(P::x(args_) + n * g_.h * g_.w * ldx, ldx, g_, y, at_offset<float>(scratch_, s_.blend), dst, s_.ld1);
      dst += g_.c1;
    }
    const int64_t lds = P::skip_pixel(g_.c2);
    const auto* skip = P::skip(args_) + (n * g_.oh + y) * g_.ow * lds;
    for (int64_t x = 0; x < g_.ow && g_.c2 > 0; ++x, dst += s_.ld1, skip += lds) {
      for (int64_t c = 0; c < g_.c2; c += Vec::width) {
        store_partial(dst + c, P::load(args_, skip + c, g_.c2 - c), g_.c2 - c);
      }
    }
    return row;
  }

  void compute_row2(int64_t n, int64_t y, float* row) {
    if (g_.lift != nullptr) {
      resize_lifted_row(g_, n, y, at_offset<float>(scratch_, s_.blend), row + s_.ld2, s_.ld2);
    }
    const float* rows[kTaps];
    int64_t taps[kTaps];
    const int64_t count = s_.c == 0 ? 0 : around(y, rows, taps, [&](int64_t at) { return row1(n, at); });
    const DepthwiseRow geometry{s_.ld1, g_.ow + 2, kTaps, kTaps, 1, 0, 1, s_.ld1, nullptr, cpu::kNone, 0.0f};
    auto* a = at_offset<typename P::Value>(scratch_, s_.a);
    for (int64_t x = 0; x < g_.ow; x += P::kTile) {
      const int64_t pixels = min_i(P::kTile, g_.ow - x);
      if (s_.c > 0) {
        depthwise_run(rows, taps, count, geometry, g_.depthwise1, x, x + pixels, a, s_.ld1);
      }
      float* out = row + (x + 1) * s_.ld2;
      P::to_floats(pixels, g_.f1, s_.c, a, s_.ld1, g_.pointwise1, g_.bias1, out, s_.ld2,
                   g_.lift == nullptr ? nullptr : out, g_.activation1);
    }
  }

  const typename P::Args& args_;
  const cpu::DecoderArgs& g_;
  const Scratch<P>& s_;
  char* scratch_;
  int64_t* tags1_;
  int64_t* tags2_;
};

template <typename P>
void lift(const typename P::Args& args, int64_t begin, int64_t end) {
  // zero in place of a bias
  alignas(64) static const float zeros[kPanel] = {};
  const cpu::DecoderArgs& g = P::sums(args);
  const int64_t columns = kTaps * kTaps * g.f1;
  const int64_t p0 = begin * g.lift_tile;
  const int64_t p1 = min_i(end * g.lift_tile, g.n * g.h * g.w);
  const int64_t ldx = P::pixel(g.c1);
  for (int64_t n = 0; n < columns; n += kPanel) {
    const int64_t cols = min_i(kPanel, columns - n);
    P::to_floats(p1 - p0, cols, g.c1, P::x(args) + p0 * ldx, ldx, g.lift + n * P::rows(g.c1), zeros,
                 g.lifted + p0 * columns + n, columns, nullptr, cpu::kNone);
  }
}

template <typename P>
void run(const typename P::Args& args, int64_t begin, int64_t end, char* scratch, bool fresh) {
  const cpu::DecoderArgs& g = P::sums(args);
  const Scratch<P> s(g);
  Rows<P> source(args, s, scratch, fresh);
  const DepthwiseRow geometry{s.ld2, g.ow + 2, kTaps, kTaps, 1, 0, 1, s.ld2, nullptr, cpu::kNone, 0.0f};
  auto* a = at_offset<typename P::Value>(scratch, s.a);
  auto* b = at_offset<typename P::Value>(scratch, s.b);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t y = row - n * g.oh;
    const float* rows[kTaps];
    int64_t taps[kTaps];
    const int64_t count = source.around2(n, y, rows, taps);
    for (int64_t x = 0; x < g.ow; x += P::kTile) {
      const int64_t pixels = min_i(P::kTile, g.ow - x);
      depthwise_run(rows, taps, count, geometry, g.depthwise2, x, x + pixels, a, s.ld2);
      P::to_values(pixels, g.f2, g.f1, a, s.ld2, g.pointwise2, g.bias2, b, s.ld3, g.activation2);
      P::classify(args, n, y, x, pixels, b, s.ld3, at_offset<float>(scratch, s.sums));
    }
  }
}

template <typename P>
int64_t scratch_bytes(const typename P::Args& args) {
  return Scratch<P>(P::sums(args)).layout.bytes();
}

}  // namespace

}  // namespace liteseg::LITESEG_ISA
