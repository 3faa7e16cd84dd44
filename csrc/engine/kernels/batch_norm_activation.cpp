// batch_norm_activation - batch normalisation in training with residual and activation, forward and backward.
// Replaces: native_batch_norm, add and the activation, and their backwards
// Shapes:   x, grad, residual [N, C, H, W] at any strides -> out and gradients in x's format; statistics [C]
// Traffic:  statistics read x; forward reads x (and residual) and writes out; backward reads x and grad (and residual)
//           twice and writes x's gradient. The value before the activation is computed again: no map of it is kept
// Bound:    memory
// Layout:   row by row of the flattened N x H; vectors go over channels where those are innermost, else over pixels
// Numerics: fp32. A block of rows is summed twice, the second time around its own mean, and blocks are combined in
//           order. Blocks depend on the shapes alone, so results do not depend on the number of threads
// Limits:   float32, float16, bfloat16
#include "engine/kernels/batch_norm_activation.h"

#include "engine/blocks/output.h"
#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::BatchNormArgs;
using cpu::Strides4;

constexpr int64_t kGroup = 4;  // vectors of channels summed side by side

// A map's row. Wide: vectors run over channels, else over pixels; Dense: these are contiguous in memory.
template <typename T, bool Wide, bool Dense>
struct Row {
  const T* data;
  int64_t c_stride, w_stride;

  LITESEG_INLINE Row(const void* map, const Strides4& s, int64_t n, int64_t y)
      : data(map == nullptr ? nullptr : static_cast<const T*>(map) + n * s.n + y * s.h),
        c_stride(Dense && Wide ? 1 : s.c),
        w_stride(Dense && !Wide ? 1 : s.w) {}
  LITESEG_INLINE Vec at(int64_t c, int64_t p, int64_t count) const {
    return load_strided(data + c * c_stride + p * w_stride, Wide ? c_stride : w_stride, count);
  }
};

// values of a vector of channels, or of one channel in all lanes
template <bool Wide>
LITESEG_INLINE Vec of_channel(const float* values, int64_t c, int64_t count) {
  return Wide ? load_partial(values + c, count) : set1(values[c]);
}

template <bool Wide>
struct Normaliser {
  Vec mean, scale, shift;

  LITESEG_INLINE Normaliser() = default;
  LITESEG_INLINE Normaliser(const BatchNormArgs& g, int64_t c, int64_t count)
      : mean(of_channel<Wide>(g.mean, c, count)),
        scale(of_channel<Wide>(g.scale, c, count)),
        shift(of_channel<Wide>(g.shift, c, count)) {}
};

// sums of x - center and of its square
template <typename T, bool Wide, bool Dense>
struct Deviations {
  struct Channel {
    Vec center;
  };
  struct Rows {
    Row<T, Wide, Dense> x;
  };
  const BatchNormArgs& g;
  const float* center;

  LITESEG_INLINE Channel channel(int64_t c, int64_t) const {
    // center is padded to whole vectors
    return {Wide ? load(center + c) : set1(center[c])};
  }
  LITESEG_INLINE Rows rows(int64_t n, int64_t y) const {
    return {{g.x, g.xs, n, y}};
  }
  // lanes behind the row's end must not count; lanes behind the last channel are never read
  LITESEG_INLINE void add_to(Vec& a, Vec& b, const Channel& ch, const Rows& r, int64_t c, int64_t p,
                             int64_t count) const {
    Vec d = sub(r.x.at(c, p, count), ch.center);
    if (!Wide && count < Vec::width) {
      float lanes[Vec::width] = {};
      store_n(lanes, d, count);
      d = load(lanes);
    }
    a = add(a, d);
    b = fma(d, d, b);
  }
};

// gradient before the activation, and x's deviation from the mean
template <bool Wide, typename Maps>
LITESEG_INLINE Vec gradient_before(const BatchNormArgs& g, const Normaliser<Wide>& ch, const Maps& r, Vec slope,
                                   int64_t c, int64_t p, int64_t count, Vec& deviation) {
  deviation = sub(r.x.at(c, p, count), ch.mean);
  const Vec grad = r.grad.at(c, p, count);
  if (g.activation == cpu::kNone) {
    return grad;
  }
  Vec z = fma(deviation, ch.scale, ch.shift);
  if (r.residual.data != nullptr) {
    z = add(z, r.residual.at(c, p, count));
  }
  return activation_gradient(grad, z, g.activation, slope);
}

template <typename T, bool Wide, bool Dense>
struct Maps {
  Row<T, Wide, Dense> x, grad, residual;

  LITESEG_INLINE Maps(const BatchNormArgs& g, int64_t n, int64_t y)
      : x(g.x, g.xs, n, y), grad(g.grad, g.gs, n, y), residual(g.residual, g.rs, n, y) {}
};

// sums of the gradient before the activation, and of its product with the deviation
template <typename T, bool Wide, bool Dense>
struct Gradients {
  using Channel = Normaliser<Wide>;
  using Rows = Maps<T, Wide, Dense>;
  const BatchNormArgs& g;
  Vec slope;

  LITESEG_INLINE Channel channel(int64_t c, int64_t count) const {
    return {g, c, count};
  }
  LITESEG_INLINE Rows rows(int64_t n, int64_t y) const {
    return {g, n, y};
  }
  LITESEG_INLINE void add_to(Vec& a, Vec& b, const Channel& ch, const Rows& r, int64_t c, int64_t p,
                             int64_t count) const {
    Vec d;
    const Vec dz = gradient_before(g, ch, r, slope, c, p, count, d);
    a = add(a, dz);
    b = fma(dz, d, b);
  }
};

// the lanes of v, in fixed order
LITESEG_INLINE float lane_sum(Vec v) {
  float lanes[Vec::width];
  store(lanes, v);
  float sum = 0.0f;
  for (int64_t i = 0; i < Vec::width; ++i) {
    sum += lanes[i];
  }
  return sum;
}

// first[c] and second[c]: both sums of `terms` over the rows [r0, r1)
template <bool Wide, typename Terms>
void sum_rows(const BatchNormArgs& g, int64_t r0, int64_t r1, const Terms& terms, float* first, float* second) {
  if (Wide) {
    for (int64_t c = 0; c < g.c; c += kGroup * Vec::width) {
      const int64_t vectors = min_i(kGroup, div_up(g.c - c, Vec::width));
      Vec a[kGroup] = {zero(), zero(), zero(), zero()};
      Vec b[kGroup] = {zero(), zero(), zero(), zero()};
      typename Terms::Channel channels[kGroup];
      for (int64_t v = 0; v < vectors; ++v) {
        channels[v] = terms.channel(c + v * Vec::width, g.c - c - v * Vec::width);
      }
      const auto add_row = [&](int64_t row, auto whole) LITESEG_INLINE_LAMBDA {
        const typename Terms::Rows r = terms.rows(row / g.h, row % g.h);
        for (int64_t p = 0; p < g.w; ++p) {
#pragma GCC unroll 4
          for (int64_t v = 0; v < kGroup; ++v) {
            const int64_t at = c + v * Vec::width;
            if (decltype(whole)::value) {
              terms.add_to(a[v], b[v], channels[v], r, at, p, Vec::width);
            } else if (v < vectors) {
              terms.add_to(a[v], b[v], channels[v], r, at, p, g.c - at);
            }
          }
        }
      };
      for (int64_t row = r0; row < r1; ++row) {
        if (c + kGroup * Vec::width <= g.c) {
          add_row(row, std::true_type{});
        } else {
          add_row(row, std::false_type{});
        }
      }
      for (int64_t v = 0; v < vectors; ++v) {
        store(first + c + v * Vec::width, a[v]);
        store(second + c + v * Vec::width, b[v]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < g.c; ++c) {
    Vec a = zero();
    Vec b = zero();
    const typename Terms::Channel channel = terms.channel(c, 1);
    for (int64_t row = r0; row < r1; ++row) {
      const typename Terms::Rows r = terms.rows(row / g.h, row % g.h);
      for (int64_t p = 0; p < g.w; p += Vec::width) {
        terms.add_to(a, b, channel, r, c, p, g.w - p);
      }
    }
    first[c] = lane_sum(a);
    second[c] = lane_sum(b);
  }
}

LITESEG_INLINE int64_t rows_of_block(const BatchNormArgs& g, int64_t block) {
  return min_i(g.block_rows, g.n * g.h - block * g.block_rows);
}

template <typename T, bool Wide, bool Dense>
void statistics_of(const BatchNormArgs& g, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* mean = g.sums + 2 * block * g.channel_stride;
    float* squares = mean + g.channel_stride;
    const int64_t r0 = block * g.block_rows;
    const int64_t r1 = r0 + rows_of_block(g, block);
    const Vec share = set1(1.0f / static_cast<float>((r1 - r0) * g.w));
    // first sum around zero, then around the mean found that way; the second sums correct the rounding of the first
    for (int64_t c = 0; c < 2 * g.channel_stride; c += Vec::width) {
      store(mean + c, zero());
    }
    float* rest = g.rest + block * g.channel_stride;
    sum_rows<Wide>(g, r0, r1, Deviations<T, Wide, Dense>{g, mean}, rest, squares);
    for (int64_t c = 0; c < g.channel_stride; c += Vec::width) {
      store(mean + c, mul(load(rest + c), share));
    }
    sum_rows<Wide>(g, r0, r1, Deviations<T, Wide, Dense>{g, mean}, rest, squares);
    for (int64_t c = 0; c < g.channel_stride; c += Vec::width) {
      const Vec left = mul(load(rest + c), share);
      store(mean + c, add(load(mean + c), left));
      store(squares + c, sub(load(squares + c), mul(left, load(rest + c))));
    }
  }
}

template <typename T, bool Wide, bool Dense>
void gradient_sums_of(const BatchNormArgs& g, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* sums = g.sums + 2 * block * g.channel_stride;
    const int64_t r0 = block * g.block_rows;
    sum_rows<Wide>(g, r0, r0 + rows_of_block(g, block), Gradients<T, Wide, Dense>{g, set1(g.slope)}, sums,
                   sums + g.channel_stride);
  }
}

// body(c, count) for each vector of channels of the results
template <typename Body>
LITESEG_INLINE void for_results(const BatchNormArgs& g, const Body& body) {
  for (int64_t c = 0; c < g.c; c += Vec::width) {
    body(c, g.c - c);
  }
}

void combine_statistics(const BatchNormArgs& g) {
  for_results(g, [&](int64_t c, int64_t count) LITESEG_INLINE_LAMBDA {
    Vec mean = zero();
    for (int64_t i = 0; i < g.blocks; ++i) {
      const float weight = static_cast<float>(rows_of_block(g, i)) / static_cast<float>(g.n * g.h);
      mean = fma(load(g.sums + 2 * i * g.channel_stride + c), set1(weight), mean);
    }
    Vec squares = zero();
    for (int64_t i = 0; i < g.blocks; ++i) {
      const float* sums = g.sums + 2 * i * g.channel_stride + c;
      const Vec d = sub(load(sums), mean);
      const Vec between = mul(d, set1(static_cast<float>(rows_of_block(g, i) * g.w)));
      squares = add(squares, fma(d, between, load(sums + g.channel_stride)));
    }
    store_partial(g.first + c, mean, count);
    store_partial(g.second + c, squares, count);
  });
}

void combine_gradients(const BatchNormArgs& g) {
  for_results(g, [&](int64_t c, int64_t count) LITESEG_INLINE_LAMBDA {
    Vec a = zero();
    Vec b = zero();
    for (int64_t i = 0; i < g.blocks; ++i) {
      const float* sums = g.sums + 2 * i * g.channel_stride + c;
      a = add(a, load(sums));
      b = add(b, load(sums + g.channel_stride));
    }
    store_partial(g.first + c, a, count);
    store_partial(g.second + c, b, count);
  });
}

// body(n, y, c, p, count, channel) for each vector of rows [begin, end)
template <bool Wide, typename Channel, typename Body>
LITESEG_INLINE void for_vectors(const BatchNormArgs& g, int64_t begin, int64_t end, const Body& body) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.h;
    const int64_t y = row - n * g.h;
    const auto at = body(n, y);
    if (Wide) {
      for (int64_t p = 0; p < g.w; ++p) {
        int64_t c = 0;
        for (; c + Vec::width <= g.c; c += Vec::width) {
          at(c, p, Vec::width, Channel(g, c, Vec::width));
        }
        if (c < g.c) {
          at(c, p, g.c - c, Channel(g, c, g.c - c));
        }
      }
    } else {
      for (int64_t c = 0; c < g.c; ++c) {
        const Channel channel(g, c, 1);
        for (int64_t p = 0; p < g.w; p += Vec::width) {
          at(c, p, g.w - p, channel);
        }
      }
    }
  }
}

// where a vector of a dense map goes
template <typename T, bool Wide>
LITESEG_INLINE T* place(void* map, const Strides4& s, int64_t n, int64_t y, int64_t c, int64_t p) {
  return static_cast<T*>(map) + n * s.n + y * s.h + (Wide ? p * s.w + c : c * s.c + p);
}

template <typename T, bool Wide, bool Dense>
void apply_to(const BatchNormArgs& g, int64_t begin, int64_t end) {
  const Vec slope = set1(g.slope);
  for_vectors<Wide, Normaliser<Wide>>(g, begin, end, [&](int64_t n, int64_t y) LITESEG_INLINE_LAMBDA {
    const Row<T, Wide, Dense> x(g.x, g.xs, n, y);
    const Row<T, Wide, Dense> residual(g.residual, g.rs, n, y);
    T* out = place<T, Wide>(g.out, g.os, n, y, 0, 0);
    return [=, &g](int64_t c, int64_t p, int64_t count, const Normaliser<Wide>& ch) LITESEG_INLINE_LAMBDA {
      Vec z = fma(sub(x.at(c, p, count), ch.mean), ch.scale, ch.shift);
      if (residual.data != nullptr) {
        z = add(z, residual.at(c, p, count));
      }
      store_partial(out + (Wide ? p * g.os.w + c : c * g.os.c + p), activate(z, g.activation, slope), count);
    };
  });
}

template <bool Wide>
struct Differentiator : Normaliser<Wide> {
  Vec offset, factor;

  LITESEG_INLINE Differentiator(const BatchNormArgs& g, int64_t c, int64_t count)
      : Normaliser<Wide>(g, c, count),
        offset(of_channel<Wide>(g.offset, c, count)),
        factor(of_channel<Wide>(g.factor, c, count)) {}
};

template <typename T, bool Wide, bool Dense>
void gradient_to(const BatchNormArgs& g, int64_t begin, int64_t end) {
  const Vec slope = set1(g.slope);
  for_vectors<Wide, Differentiator<Wide>>(g, begin, end, [&](int64_t n, int64_t y) LITESEG_INLINE_LAMBDA {
    const Maps<T, Wide, Dense> maps(g, n, y);
    return [=, &g](int64_t c, int64_t p, int64_t count, const Differentiator<Wide>& ch) LITESEG_INLINE_LAMBDA {
      Vec d;
      const Vec dz = gradient_before<Wide>(g, ch, maps, slope, c, p, count, d);
      if (g.grad_residual != nullptr) {
        store_partial(place<T, Wide>(g.grad_residual, g.drs, n, y, c, p), dz, count);
      }
      if (g.out != nullptr) {
        const Vec mean_part = fma(ch.factor, d, ch.offset);
        store_partial(place<T, Wide>(g.out, g.os, n, y, c, p), sub(mul(ch.scale, dz), mean_part), count);
      }
    };
  });
}

// one pass over maps that are all dense along the vectors where possible
#define LITESEG_BATCH_NORM_PASS(name, kernel, wide_expression)                                            \
  template <typename T>                                                                                   \
  void name(const BatchNormArgs& g, int64_t begin, int64_t end) {                                         \
    const bool wide = (wide_expression);                                                                  \
    const auto neighbours = [&](const void* map, const Strides4& s) {                                     \
      return map == nullptr || (wide ? s.c : s.w) == 1;                                                   \
    };                                                                                                    \
    const bool dense = neighbours(g.x, g.xs) && neighbours(g.grad, g.gs) && neighbours(g.residual, g.rs); \
    if (wide) {                                                                                           \
      dense ? kernel<T, true, true>(g, begin, end) : kernel<T, true, false>(g, begin, end);               \
    } else {                                                                                              \
      dense ? kernel<T, false, true>(g, begin, end) : kernel<T, false, false>(g, begin, end);             \
    }                                                                                                     \
  }

LITESEG_BATCH_NORM_PASS(block_statistics, statistics_of, g.xs.c == 1)
LITESEG_BATCH_NORM_PASS(block_gradients, gradient_sums_of, g.xs.c == 1)
LITESEG_BATCH_NORM_PASS(apply_rows, apply_to, g.os.c == 1)
LITESEG_BATCH_NORM_PASS(gradient_rows, gradient_to, (g.out == nullptr ? g.drs : g.os).c == 1)
#undef LITESEG_BATCH_NORM_PASS

}  // namespace

const cpu::BatchNormTable batch_norm_activation_table = {
    Vec::width,
    {block_statistics<float>, block_statistics<f16>, block_statistics<bf16>},
    {block_gradients<float>, block_gradients<f16>, block_gradients<bf16>},
    combine_statistics,
    combine_gradients,
    {apply_rows<float>, apply_rows<f16>, apply_rows<bf16>},
    {gradient_rows<float>, gradient_rows<f16>, gradient_rows<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
