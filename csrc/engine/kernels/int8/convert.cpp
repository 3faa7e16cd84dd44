// Between maps of numbers, float or bf16, and the maps of bytes of the int8 layers.
// Shapes:   [N, H, W, C] -> [N, H, W, C], channels innermost
// Traffic:  one byte and one number of 4 or 2 a value
// Bound:    memory
// Numerics: quantise: one product with 1 / scale in fp32, then to the nearest, ties to even; dequantise: one product
#include "engine/kernels/int8/tables.h"

#include "engine/simd/bytes.h"

namespace liteseg::LITESEG_ISA {
namespace {

using cpu::ConvertArgs;

template <typename T>
void to_bytes(const ConvertArgs& g, int64_t begin, int64_t end) {
  const Vec inverse = set1(1.0f / g.grid.scale);
  const Vec least = set1(static_cast<float>(-g.grid.zero));
  const Vec most = set1(static_cast<float>(255 - g.grid.zero));
  const Ints zeros = set1_int(g.grid.zero);
  for (int64_t i = begin; i < end; ++i) {
    const T* from = static_cast<const T*>(g.from) + i * g.from_pixel;
    uint8_t* to = static_cast<uint8_t*>(g.to) + i * g.to_pixel;
    for (int64_t c = 0; c < g.c; c += kBytes) {
      Ints parts[4] = {zeros, zeros, zeros, zeros};
      for (int64_t v = 0; v < 4 && c + v * Vec::width < g.c; ++v) {
        const Vec x = load_partial(from + c + v * Vec::width, g.c - c - v * Vec::width);
        // the order of operands makes NaN the least
        parts[v] = add(to_ints(minimum(maximum(mul(x, inverse), least), most)), zeros);
      }
      store_bytes(to + c, in_order(pack(parts[0], parts[1], parts[2], parts[3])));
    }
  }
}

template <typename T>
void from_bytes(const ConvertArgs& g, int64_t begin, int64_t end) {
  const Vec scale = set1(g.grid.scale);
  const Ints zeros = set1_int(-g.grid.zero);
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* from = static_cast<const uint8_t*>(g.from) + i * g.from_pixel;
    T* to = static_cast<T*>(g.to) + i * g.to_pixel;
    for (int64_t c = 0; c < g.c; c += Vec::width) {
      const Vec value = mul(to_floats(add(widen_bytes(from + c), zeros)), scale);
      store_partial(to + c, value, g.c - c);
    }
    // pixels of bf16 are whole vectors, with zeros after the last channel
    for (int64_t c = g.c; sizeof(T) == 2 && c < g.to_pixel; ++c) {
      narrow(0.0f, to + c);
    }
  }
}

void quantise(const ConvertArgs& g, int64_t begin, int64_t end) {
  (g.half ? to_bytes<bf16> : to_bytes<float>)(g, begin, end);
}

void dequantise(const ConvertArgs& g, int64_t begin, int64_t end) {
  (g.half ? from_bytes<bf16> : from_bytes<float>)(g, begin, end);
}

}  // namespace

const cpu::ConvertTable convert_table = {quantise, dequantise};

}  // namespace liteseg::LITESEG_ISA
