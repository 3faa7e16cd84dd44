// Activations that cost more than a store: they are applied to finished values while these are in the nearest cache,
// so the loops of the products stay free of them.
#pragma once

#include "engine/simd/vec.h"

namespace liteseg::LITESEG_ISA {

LITESEG_INLINE bool is_smooth(int activation) {
  return activation > cpu::kLastOfOps;
}
// what is left for the kernel's own stores
LITESEG_INLINE int plain_activation(int activation) {
  return is_smooth(activation) ? cpu::kNone : activation;
}

// 1 / (1 + e^-x), from the side on which the exponential does not overflow
LITESEG_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp_negative(minimum(x, sub(zero(), x)));
  const Vec one = set1(1.0f);
  return divide(where_greater(zero(), x, e, one), add(one, e));
}

// NaN stays NaN, as with `activate`
LITESEG_INLINE Vec smooth(Vec x, int activation) {
  switch (activation) {
    case cpu::kHardswish:
      return mul(x, mul(minimum(set1(6.0f), maximum(zero(), add(x, set1(3.0f)))), set1(1.0f / 6.0f)));
    case cpu::kHardsigmoid:
      return mul(minimum(set1(6.0f), maximum(zero(), add(x, set1(3.0f)))), set1(1.0f / 6.0f));
    case cpu::kSilu:
      return mul(x, sigmoid(x));
    default:
      return sigmoid(x);
  }
}

// in place on `pixels` runs of `count` values, ld floats apart
LITESEG_INLINE void smooth_pixels(float* p, int64_t pixels, int64_t count, int64_t ld, int activation) {
  if (!is_smooth(activation)) {
    return;
  }
  if (ld == count) {
    count *= pixels;
    pixels = 1;
  }
  for (int64_t i = 0; i < pixels; ++i, p += ld) {
    for (int64_t c = 0; c < count; c += Vec::width) {
      store_partial(p + c, smooth(load_partial(p + c, count - c), activation), count - c);
    }
  }
}

}  // namespace liteseg::LITESEG_ISA
