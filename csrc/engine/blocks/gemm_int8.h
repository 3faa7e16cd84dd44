// Products of uint8 with int8, four inputs at a time, with exact int32 sums: sum[m][n] = bias[n] + sum_k a[m][k] *
// b[k][n]. The sum times the column's scale, rounded to the nearest (ties to even), plus a zero point is stored as
// uint8, saturated.
//
// b is packed in words of four neighbouring k, in panels of kPanel columns (gemm.h): [ceil(N / kPanel)][ceil(K /
// 4)][kPanel] words, zero-padded; bias (int32) and scale (float) are padded likewise. Rows of a are read in whole words,
// whatever lies behind their end.
#pragma once

#include "engine/blocks/gemm.h"
#include "engine/simd/bytes.h"

namespace liteseg::LITESEG_ISA {

LITESEG_INLINE int64_t byte_words(int64_t k) {
  return div_up(k, 4);
}

// where finished sums go, with a residual of the same layout or none: each of its values less its zero point, times
// `residual_scale`, is added before rounding. That product is exact: residual_scale has at most 16 significant bits.
struct StoreBytes {
  uint8_t* out;
  int64_t ldo;
  const float* scale;  // [N]
  int32_t zero;
  const uint8_t* residual;
  int64_t ldr;
  float residual_scale;
  int32_t residual_zero;

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, int64_t n, Ints (&acc)[H][V]) const {
    const Ints zeros = set1_int(zero);
    Vec factor[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      factor[v] = load(scale + n + v * Vec::width);
    }
    const auto rounded = [&](auto adds) LITESEG_INLINE_LAMBDA {
#pragma GCC unroll 12
      for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          Vec value = mul(to_floats(acc[m][v]), factor[v]);
          if (decltype(adds)::value) {
            const uint8_t* p = residual + (m0 + m) * ldr + n + v * Vec::width;
            value = add_product(value, to_floats(add(widen_bytes(p), set1_int(-residual_zero))), set1(residual_scale));
          }
          acc[m][v] = add(to_ints(value), zeros);
        }
      }
    };
    if (residual != nullptr) {
      rounded(std::true_type{});
    } else {
      rounded(std::false_type{});
    }
    const auto second = [&](int m) LITESEG_INLINE_LAMBDA { return V == 2 ? acc[m][V - 1] : zeros; };
    uint8_t* p = out + m0 * ldo + n;
#pragma GCC unroll 6
    for (int m = 0; m + 1 < H; m += 2) {
      const Bytes two = in_order(pack(acc[m][0], second(m), acc[m + 1][0], second(m + 1)));
      store_half(p + m * ldo, two, 0);
      store_half(p + (m + 1) * ldo, two, 1);
    }
    if (H % 2 == 1) {
      store_half(p + (H - 1) * ldo, in_order(pack(acc[H - 1][0], second(H - 1), zeros, zeros)), 0);
    }
  }
};

// sums as int32 [count][ldo], added to what is there or not; whole vectors, so [ldo] has room for whole panels
struct StoreSums {
  int32_t* out;
  int64_t ldo;
  bool adds;

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, int64_t n, Ints (&acc)[H][V]) const {
#pragma GCC unroll 12
    for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        int32_t* p = out + (m0 + m) * ldo + n + v * Vec::width;
        store_ints(p, adds ? add(acc[m][v], load_ints(p)) : acc[m][v]);
      }
    }
  }
};

template <int H, int V, typename Store>
LITESEG_INLINE void byte_block(const uint8_t* a, int64_t lda, int64_t words, const uint32_t* b, const uint32_t* bias,
                               int64_t m0, int64_t n, const Store& store) {
  Ints acc[H][V];
#pragma GCC unroll 12
  for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load_ints(bias + v * Vec::width);
    }
  }
  const uint8_t* first = a + m0 * lda;
#pragma GCC unroll 4
  for (int64_t k = 0; k < words; ++k, b += kPanel) {
    Right bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      bv[v] = load_right(b + v * Vec::width);
    }
#pragma GCC unroll 12
    for (int m = 0; m < H; ++m) {
      const Left av = left_of(word_at(first + m * lda + 4 * k));
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        acc[m][v] = dot(acc[m][v], av, bv[v]);
      }
    }
  }
  store.template put<H, V>(m0, n, acc);
}

// rows [0, count) of one panel, V vectors of it
template <int V, typename Store>
LITESEG_ONE_COPY void byte_panel(int64_t count, const uint8_t* a, int64_t lda, int64_t words, const uint32_t* b,
                                 const uint32_t* bias, int64_t n, const Store& store) {
  in_blocks<kDotRows>(count, [&](auto height, int64_t m) LITESEG_INLINE_LAMBDA {
    byte_block<decltype(height)::value, V>(a, lda, words, b, bias, m, n, store);
  });
}

// columns [n, n + kPanel) of the product of a [count][lda], with inputs [k0, k0 + k_count) of the k_total that the
// panels have (k0 a multiple of four)
template <typename Store>
LITESEG_INLINE void byte_part(int64_t n, int64_t n_count, int64_t count, int64_t k_total, int64_t k0, int64_t k_count,
                              const uint8_t* a, int64_t lda, const uint32_t* panels, const uint32_t* bias,
                              const Store& store) {
  const uint32_t* b = panels + n * byte_words(k_total) + k0 / 4 * kPanel;
  if (n_count - n > Vec::width) {
    byte_panel<2>(count, a, lda, byte_words(k_count), b, bias + n, n, store);
  } else {
    byte_panel<1>(count, a, lda, byte_words(k_count), b, bias + n, n, store);
  }
}

// the same with all inputs
template <typename Store>
LITESEG_INLINE void byte_columns(int64_t n, int64_t n_count, int64_t count, int64_t k_count, const uint8_t* a,
                                 int64_t lda, const uint32_t* panels, const uint32_t* bias, const Store& store) {
  byte_part(n, n_count, count, k_count, 0, k_count, a, lda, panels, bias, store);
}

}  // namespace liteseg::LITESEG_ISA
