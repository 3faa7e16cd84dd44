// The vectors of one instruction set (simd/f32_*.h) against single numbers, on values that are likely to go wrong. Prints
// a line a difference; exit code 1 where there is one.
#include "engine/simd/vec.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

using namespace liteseg;
using namespace liteseg::LITESEG_ISA;

constexpr int kWidth = Vec::width;
int differences = 0;

// bit for bit, but that one NaN is like another and zeros have no sign where `loose`
bool alike(float a, float b, bool loose = false) {
  return to_bits(a) == to_bits(b) || (a != a && b != b) || (loose && a == b);
}

void expect(bool right, const char* what, float a, float b, float got) {
  if (!right && ++differences < 50) {
    std::printf("%s(%a, %a) gives %a\n", what, static_cast<double>(a), static_cast<double>(b),
                static_cast<double>(got));
  }
}

Vec filled(const float* values, int lane) {
  float all[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    all[i] = values[(lane + i) % kWidth];
  }
  return load(all);
}

float lane_of(Vec a, int lane) {
  float all[kWidth];
  store(all, a);
  return all[lane];
}

std::vector<float> hostile() {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,       -0.0f,
                               1.0f,       -1.0f,
                               6.0f,       5.9999995f,
                               6.0000005f, 0.1f,
                               -3.5f,      65504.0f,
                               65519.99f,  65520.0f,
                               1e-8f,      -6e-8f,
                               6.1e-5f,    3e38f,
                               -3e38f,     1e-45f,
                               -1e-40f,    infinity,
                               -infinity,  std::numeric_limits<float>::quiet_NaN(),
                               2049.0f,    1.00390625f,
                               1.01171875f};
  uint32_t state = 12345;
  for (int i = 0; i < 40; ++i) {
    state = state * 1664525u + 1013904223u;
    values.push_back(static_cast<float>(static_cast<int32_t>(state)) * 1e-8f);
  }
  return values;
}

template <typename Got, typename Wanted>
void each_pair(const char* what, const std::vector<float>& values, const Got& got, const Wanted& wanted) {
  for (const float x : values) {
    for (const float y : values) {
      float lanes_x[kWidth], lanes_y[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        lanes_x[i] = i % 2 == 0 ? x : y;
        lanes_y[i] = i % 2 == 0 ? y : x;
      }
      const Vec found = got(load(lanes_x), load(lanes_y));
      for (const int lane : {0, 1, kWidth - 1}) {
        const float a = lanes_x[lane], b = lanes_y[lane];
        expect(alike(lane_of(found, lane), wanted(a, b)), what, a, b, lane_of(found, lane));
      }
    }
  }
}

template <typename T>
void half_precision(const char* what, const std::vector<float>& values) {
  // every value there is, forth and back
  for (int bits = 0; bits < 65536; bits += kWidth) {
    T in[kWidth], out[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      in[i].bits = static_cast<uint16_t>(bits + i);
    }
    const Vec wide = load(in);
    store(out, wide);
    for (int i = 0; i < kWidth; ++i) {
      const float x = widen(in[i]);
      expect(alike(lane_of(wide, i), x), what, x, 0, lane_of(wide, i));
      expect(x != x ? widen(out[i]) != widen(out[i]) : out[i].bits == in[i].bits, what, x, 1, widen(out[i]));
    }
  }
  for (const float value : values) {
    T out[kWidth], wanted;
    store(out, set1(value));
    narrow(value, &wanted);
    const bool right = value != value ? widen(out[0]) != widen(out[0]) : out[0].bits == wanted.bits;
    expect(right, what, value, 2, widen(out[0]));
  }
}

template <typename T>
void partial(const char* what) {
  for (int n = 0; n <= kWidth; ++n) {
    T in[kWidth + 1], out[kWidth + 1];
    for (int i = 0; i <= kWidth; ++i) {
      narrow(static_cast<float>(i + 1), in + i);
      narrow(-1.0f, out + i);
    }
    const Vec a = load_partial(in, n);
    store_partial(out, a, n);
    for (int i = 0; i <= kWidth; ++i) {
      const float wanted = i < n ? static_cast<float>(i + 1) : 0.0f;
      if (i < kWidth) {
        expect(lane_of(a, i) == wanted, what, static_cast<float>(n), static_cast<float>(i), lane_of(a, i));
      }
      expect(widen(out[i]) == (i < n ? wanted : -1.0f), what, static_cast<float>(n), static_cast<float>(i),
             widen(out[i]));
    }
  }
}

void moves() {
  float table[kWidth * 5];
  int32_t near[kWidth], far[kWidth];
  for (int i = 0; i < kWidth * 5; ++i) {
    table[i] = static_cast<float>(i * i) + 0.5f;
  }
  for (int i = 0; i < kWidth; ++i) {
    near[i] = 7 + (i * 3 + 1) % kWidth;
    far[i] = 7 + (i * 11 + 2) % (kWidth * 5);
  }
  const Vec found = lookup<true>(table, load_index(near, 7)), distant = lookup<false>(table, load_index(far, 7));
  Vec rows[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    expect(lane_of(found, i) == table[near[i] - 7], "lookup, near", static_cast<float>(i), 0, lane_of(found, i));
    expect(lane_of(distant, i) == table[far[i] - 7], "lookup", static_cast<float>(i), 0, lane_of(distant, i));
    rows[i] = filled(table + i * 4, i);
  }
  float before[kWidth][kWidth];
  for (int i = 0; i < kWidth; ++i) {
    store(before[i], rows[i]);
  }
  transpose(rows);
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < kWidth; ++j) {
      expect(lane_of(rows[i], j) == before[j][i], "transpose", static_cast<float>(i), static_cast<float>(j),
             lane_of(rows[i], j));
    }
  }
}

void functions(const std::vector<float>& values) {
  for (int n = -126; n <= 127; ++n) {
    for (const float x : {1.0f, -1.75f, std::numeric_limits<float>::quiet_NaN()}) {
      const float got = lane_of(scale_by_power(set1(x), set1(static_cast<float>(n))), 0);
      expect(alike(got, std::ldexp(x, n)), "scale_by_power", x, static_cast<float>(n), got);
    }
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect(std::isnan(lane_of(exp_negative(set1(nan)), 0)), "exp_negative", nan, 0, 0);
  for (float x = 0.0f; x > -90.0f; x -= 0.0371f) {
    const double wanted = std::exp(static_cast<double>(x < -87.0f ? -87.0f : x));
    const float got = lane_of(exp_negative(set1(x)), 0);
    expect(std::abs(got - wanted) <= 2.4e-7 * wanted, "exp_negative", x, 0, got);
  }
  for (const float x : values) {
    // torch lets NaN through
    const float relu = x < 0.0f ? 0.0f : x, relu6 = relu > 6.0f ? 6.0f : relu;
    const float wanted[] = {x, relu, relu6, x > 0.0f ? x : x * 0.1f};
    const int kinds[] = {cpu::kNone, cpu::kRelu, cpu::kRelu6, cpu::kLeakyRelu};
    for (int i = 0; i < 4; ++i) {
      const float got = lane_of(activate(set1(x), kinds[i], set1(0.1f)), 0);
      expect(alike(got, wanted[i], true), "activate", x, static_cast<float>(kinds[i]), got);
    }
  }
}

}  // namespace

int main() {
  const std::vector<float> values = hostile();
  each_pair("add", values, [](Vec a, Vec b) { return add(a, b); }, [](float a, float b) { return a + b; });
  each_pair("sub", values, [](Vec a, Vec b) { return sub(a, b); }, [](float a, float b) { return a - b; });
  each_pair("mul", values, [](Vec a, Vec b) { return mul(a, b); }, [](float a, float b) { return a * b; });
  each_pair("divide", values, [](Vec a, Vec b) { return divide(a, b); }, [](float a, float b) { return a / b; });
  each_pair(
      "maximum", values, [](Vec a, Vec b) { return maximum(a, b); }, [](float a, float b) { return a > b ? a : b; });
  each_pair(
      "minimum", values, [](Vec a, Vec b) { return minimum(a, b); }, [](float a, float b) { return a < b ? a : b; });
  for (const float c : {0.0f, 0.7f}) {
    each_pair(
        "fma", values, [c](Vec a, Vec b) { return fma(a, b, set1(c)); },
        [c](float a, float b) { return LITESEG_FUSED ? std::fma(a, b, c) : a * b + c; });
  }
  for (const float x : values) {
    for (const float y : values) {
      const float most = lane_of(maximum_or_nan(set1(x), set1(y)), 0), wanted = x != x || y != y ? x + y
                                                                                : x > y          ? x
                                                                                                 : y;
      expect(alike(most, wanted, true), "maximum_or_nan", x, y, most);
      const float chosen = lane_of(where_greater(set1(x), set1(y), set1(1.0f), set1(2.0f)), 0);
      expect(chosen == (x > y ? 1.0f : 2.0f), "where_greater", x, y, chosen);
    }
  }
  half_precision<f16>("float16", values);
  half_precision<bf16>("bfloat16", values);
  partial<float>("partial float32");
  partial<f16>("partial float16");
  partial<bf16>("partial bfloat16");
  moves();
  functions(values);
  std::printf("%d lanes, %d differences\n", kWidth, differences);
  return differences != 0;
}
