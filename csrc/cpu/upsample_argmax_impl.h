// upsample_argmax - bilinear upsampling of class logits and the best class of every output pixel, in one pass.
// Replaces: F.interpolate(logits, size, mode="bilinear").argmax(1).to(uint8)
// Shapes:   logits [N, K, h, w], K <= 256 -> out uint8 [N, H, W]; logits at any strides
// Traffic:  minimum N*K*h*w*sizeof(T) + N*H*W; eager adds 2*N*K*H*W*sizeof(T) and an int64 map
// Bound:    arithmetic: two lookups, a multiply-add and a compare for each output pixel and class
// Layout:   two rows of logits are kept as floats, class by class; each output row blends them once (w values a class)
// and
//           then samples along x. The source pixels of one vector of outputs fit into one register when enlarging, so
//           the lookup is an in-register permutation; a gather serves the rest
// Numerics: fp32 coordinates as torch computes them; ties go to the lowest class; NaN counts as the largest value, the
//           first NaN wins. Rows with a value that is not finite take a scalar path
// Limits:   float32, float16, bfloat16
#pragma once

#include "copy.h"
#include "upsample_argmax.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::UpsampleArgmaxArgs;

// floats of one class's row: room for a whole vector that starts at the last pixel
int64_t row_pitch(const UpsampleArgmaxArgs& g) {
  return (div_up(g.w, Vec::width) + 1) * Vec::width;
}

// two rows as they come, and their blend
int64_t scratch_bytes(const UpsampleArgmaxArgs& g) {
  return 3 * g.k * row_pitch(g) * static_cast<int64_t>(sizeof(float));
}

template <bool Near, int P>
void best_of(const UpsampleArgmaxArgs& g, const float* blended, int64_t pitch, int64_t ox, uint8_t* out) {
  constexpr int64_t w = Vec::width;
  Index i0[P], i1[P];
  Vec w0[P], w1[P], best[P], label[P];
  const float* source[P];
  for (int p = 0; p < P; ++p) {
    const int64_t at = ox + p * w;
    const int32_t base = g.x.i0[at];
    i0[p] = load_index(g.x.i0 + at, base);
    i1[p] = load_index(g.x.i1 + at, base);
    w0[p] = load(g.x.w0 + at);
    w1[p] = load(g.x.w1 + at);
    label[p] = zero();
    source[p] = blended + base;
    best[p] = fma(w1[p], lookup<Near>(source[p], i1[p]), mul(w0[p], lookup<Near>(source[p], i0[p])));
  }
  for (int64_t k = 1; k < g.k; ++k) {
    const Vec index = set1(static_cast<float>(k));
    for (int p = 0; p < P; ++p) {
      const float* row = source[p] + k * pitch;
      const Vec v = fma(w1[p], lookup<Near>(row, i1[p]), mul(w0[p], lookup<Near>(row, i0[p])));
      label[p] = where_greater(v, best[p], index, label[p]);
      best[p] = maximum(v, best[p]);
    }
  }
  for (int p = 0; p < P; ++p) {
    float labels[w];
    store(labels, label[p]);
    for (int64_t i = 0; i < min_i(w, g.ow - ox - p * w); ++i) {
      out[ox + p * w + i] = static_cast<uint8_t>(static_cast<int32_t>(labels[i]));
    }
  }
}

// the same for any values
void best_of_row_scalar(const UpsampleArgmaxArgs& g, const float* blended, int64_t pitch, uint8_t* out) {
  for (int64_t ox = 0; ox < g.ow; ++ox) {
    float best = 0.0f;
    int64_t label = -1;
    for (int64_t k = 0; k < g.k; ++k) {
      const float* row = blended + k * pitch;
      const float v = g.x.w0[ox] * row[g.x.i0[ox]] + g.x.w1[ox] * row[g.x.i1[ox]];
      if (label < 0 || (best == best && !(v <= best))) {
        best = v;
        label = k;
      }
    }
    out[ox] = static_cast<uint8_t>(label);
  }
}

template <typename T>
void run(const UpsampleArgmaxArgs& g, int64_t begin, int64_t end, char* scratch) {
  constexpr int64_t w = Vec::width;
  const int64_t pitch = row_pitch(g);
  float* planes[2] = {reinterpret_cast<float*>(scratch), reinterpret_cast<float*>(scratch) + g.k * pitch};
  float* blended = planes[1] + g.k * pitch;
  int64_t held[2] = {-1, -1};
  // the padding takes part in the test for finite values
  for (int64_t i = 0; i < 3 * g.k * pitch; ++i) {
    planes[0][i] = 0.0f;
  }
  const auto fetch = [&](int64_t n, int64_t y) {
    const int64_t slot = y & 1;
    if (held[slot] != n * g.h + y) {
      held[slot] = n * g.h + y;
      const T* src = static_cast<const T*>(g.logits) + n * g.ls.n + y * g.ls.h;
      transpose_copy(src, g.ls.w, g.ls.c, g.w, g.k, planes[slot], pitch);
    }
    return planes[slot];
  };

  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / g.oh;
    const int64_t oy = row - n * g.oh;
    const float* r0 = fetch(n, g.y.i0[oy]);
    const float* r1 = fetch(n, g.y.i1[oy]);
    const Vec w0 = set1(g.y.w0[oy]);
    const Vec w1 = set1(g.y.w1[oy]);
    // 0 * v is 0 for finite v and NaN for the others
    Vec check = zero();
    for (int64_t i = 0; i < g.k * pitch; i += w) {
      const Vec v = fma(w1, load(r1 + i), mul(w0, load(r0 + i)));
      check = fma(v, zero(), check);
      store(blended + i, v);
    }
    float checks[w];
    store(checks, check);
    bool finite = true;
    for (int64_t i = 0; i < w; ++i) {
      finite = finite && checks[i] == 0.0f;
    }
    uint8_t* out = g.out + row * g.ow;
    if (!finite) {
      best_of_row_scalar(g, blended, pitch, out);
      continue;
    }
    for (int64_t ox = 0; ox < g.ow;) {
      const auto near = [&](int64_t at) { return g.x.i1[at + w - 1] - g.x.i0[at] < w; };
      if (ox + w < g.ow && near(ox) && near(ox + w)) {
        best_of<true, 2>(g, blended, pitch, ox, out);
        ox += 2 * w;
      } else if (near(ox)) {
        best_of<true, 1>(g, blended, pitch, ox, out);
        ox += w;
      } else {
        best_of<false, 1>(g, blended, pitch, ox, out);
        ox += w;
      }
    }
  }
}

}  // namespace

const cpu::UpsampleArgmaxTable upsample_argmax_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
