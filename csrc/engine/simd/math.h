// What follows from the vectors of any instruction set: partial loads and stores, e^x, activations. Included by vec.h.
#pragma once

namespace liteseg::LITESEG_ISA {

LITESEG_INLINE Vec zero() {
  return set1(0.0f);
}
// into the second level of cache; any address is allowed
LITESEG_INLINE void prefetch(const float* p) {
  __builtin_prefetch(p, 0, 2);
}

template <typename T>
LITESEG_INLINE Vec load_partial(const T* p, int64_t n) {
  return n >= Vec::width ? load(p) : load_n(p, n);
}
template <typename T>
LITESEG_INLINE void store_partial(T* p, Vec a, int64_t n) {
  if (n >= Vec::width) {
    store(p, a);
  } else {
    store_n(p, a, n);
  }
}

// e^x for x <= 0 (or NaN), within 2 ulp; below -87, where the result would be subnormal, it stays at e^-87
LITESEG_INLINE Vec exp_negative(Vec x) {
  x = maximum(set1(-87.0f), x);
  // adding 1.5 * 2^23 rounds to a whole number
  const Vec magic = set1(12582912.0f);
  const Vec n = sub(fma(x, set1(1.44269504f), magic), magic);
  // ln 2 in two parts, the first of few bits
  Vec r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  // minimax polynomial of (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return scale_by_power(add(fma(p, mul(r, r), r), set1(1.0f)), n);
}

// the operand order of maximum and minimum lets NaN through, as torch does
LITESEG_INLINE Vec activate(Vec a, int activation, Vec slope) {
  switch (activation) {
    case cpu::kRelu:
      return maximum(zero(), a);
    case cpu::kRelu6:
      return minimum(set1(6.0f), maximum(zero(), a));
    case cpu::kLeakyRelu:
      return where_greater(a, zero(), a, mul(a, slope));
    default:
      return a;
  }
}

// An activation other than leaky ReLU, as a lower and an upper limit.
struct Clamp {
  Vec low, high;

  LITESEG_INLINE explicit Clamp(int activation)
      : low(set1(activation == cpu::kNone ? -__builtin_inff() : 0.0f)),
        high(set1(activation == cpu::kRelu6 ? 6.0f : __builtin_inff())) {}
  LITESEG_INLINE Vec operator()(Vec a) const {
    return minimum(high, maximum(low, a));
  }
};

// gradient before the activation, from the value on either side of it; zero at the kinks, as torch has it
LITESEG_INLINE Vec activation_gradient(Vec grad, Vec out, int activation, Vec slope) {
  switch (activation) {
    case cpu::kRelu:
      return where_greater(out, zero(), grad, zero());
    case cpu::kRelu6:
      return where_greater(out, zero(), where_greater(set1(6.0f), out, grad, zero()), zero());
    case cpu::kLeakyRelu:
      return where_greater(out, zero(), grad, mul(grad, slope));
    default:
      return grad;
  }
}

}  // namespace liteseg::LITESEG_ISA
