// preprocess - uint8 picture -> bilinear resize (half-pixel centres) -> / 255, - mean, / std, in one pass.
// Replaces: permute, cast, F.interpolate, three elementwise operations and a cast; the float picture is never stored
// Shapes:   image [N, H, W, C] uint8, any strides -> out [N, C, Ho, Wo], NCHW or channels_last
// Traffic:  minimum N*C*H*W + N*C*Ho*Wo*sizeof(T); eager moves about 10*N*C*Ho*Wo floats more
// Bound:    memory where the size stays, else the lookups: two for each output value
// Layout:   the two source rows of an output row are widened and blended into one row of floats, whose values are then
//           looked up, weighed and normalised by one multiply-add each, a vector of output values at a time
// Numerics: fp32 coordinates as torch computes them and fp32 values, rounded once
// Limits:   to float32, float16, bfloat16
#include "engine/kernels/preprocess.h"

#include "engine/blocks/rows.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::PreprocessArgs;

int64_t scratch_bytes(const PreprocessArgs& g) {
  // room for a vector that starts at the last value
  return (g.w * g.c + Vec::width) * static_cast<int64_t>(sizeof(float));
}

void blend(const PreprocessArgs& g, int64_t n, int64_t oy, float* row) {
  const uint8_t* top = g.image + n * g.image_n + g.y.i0[oy] * g.image_h;
  const uint8_t* bottom = g.image + n * g.image_n + g.y.i1[oy] * g.image_h;
  const float w0 = g.y.w0[oy];
  const float w1 = g.y.w1[oy];
  if (g.image_c == 1 && g.image_w == g.c) {
    for (int64_t i = 0; i < g.w * g.c; ++i) {
      row[i] = w0 * static_cast<float>(top[i]) + w1 * static_cast<float>(bottom[i]);
    }
    return;
  }
  for (int64_t x = 0; x < g.w; ++x) {
    for (int64_t c = 0; c < g.c; ++c) {
      const int64_t at = x * g.image_w + c * g.image_c;
      row[x * g.c + c] = w0 * static_cast<float>(top[at]) + w1 * static_cast<float>(bottom[at]);
    }
  }
}

template <typename T>
void run(const PreprocessArgs& g, int64_t begin, int64_t end, char* scratch) {
  float* row = at_offset<float>(scratch, 0);
  const cpu::PreprocessColumns& columns = g.columns;
  for (int64_t flat = begin; flat < end; ++flat) {
    const int64_t n = flat / g.oh;
    const int64_t oy = flat % g.oh;
    blend(g, n, oy, row);
    for (int64_t r = 0; r < columns.runs; ++r) {
      T* out = static_cast<T*>(g.out) + n * g.out_n + oy * g.out_h + r * g.out_run;
      for (int64_t i = 0; i < columns.length; i += Vec::width) {
        const int64_t at = r * columns.pitch + i;
        Vec value = load(columns.shift + at);
        if (columns.in_place) {
          value = fma(load(columns.w0 + at), load_partial(row + i, columns.length - i), value);
        } else {
          value = fma(load(columns.w0 + at), lookup<false>(row, load_index(columns.i0 + at, 0)), value);
          value = fma(load(columns.w1 + at), lookup<false>(row, load_index(columns.i1 + at, 0)), value);
        }
        store_partial(out + i, value, columns.length - i);
      }
    }
  }
}

}  // namespace

const cpu::PreprocessTable preprocess_table = {
    scratch_bytes,
    {run<float>, run<f16>, run<bf16>},
};

}  // namespace liteseg::LITESEG_ISA
