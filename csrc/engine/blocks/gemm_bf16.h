// Products of bfloat16 with sums in fp32, two inputs at a time: sum[m][n] = bias[n] + sum_k a[m][k] * b[k][n].
//
// b is packed in words of two neighbouring k, in panels of kPanel columns (gemm.h): [ceil(N / kPanel)][ceil(K /
// 2)][kPanel] words, zero-padded; bias is float and padded likewise. Rows of a are read in whole words, so where K is
// odd the element after the last one must be a finite number: maps have pixels of whole vectors, with zeros after their
// channels. The store classes below say what is done with the sums. Every output is one chain in the order of k
// whatever the block it falls into, so results do not depend on the tiling.
#pragma once

#include "engine/blocks/gemm.h"
#if defined(__AMX_BF16__)
#include "engine/blocks/tiles_bf16.h"
#endif

#if !defined(__AVX512BF16__)
#error "only for files compiled with AVX512_BF16"
#endif

namespace liteseg::LITESEG_ISA {

// two bf16: in weights of products two inputs, in pair rows (pairs.h) two rows of the same column
using Word = uint32_t;

// channels of a stored pixel
LITESEG_INLINE int64_t padded(int64_t channels) {
  return div_up(channels, Vec::width) * Vec::width;
}
LITESEG_INLINE int64_t words_of(int64_t k) {
  return div_up(k, 2);
}

LITESEG_INLINE __m512bh as_pairs(__m512i words) {
  return reinterpret_cast<__m512bh>(words);
}
LITESEG_INLINE Vec dot(Vec sum, __m512i a, __m512i b) {
  return {_mm512_dpbf16_ps(sum.v, as_pairs(a), as_pairs(b))};
}
LITESEG_INLINE __m512i load_words(const void* p) {
  return _mm512_loadu_si512(p);
}
LITESEG_INLINE __m512i broadcast_word(const bf16* p) {
  Word word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(static_cast<int>(word));
}
// low and high, rounded, one after the other; lanes outside of the mask are zero
LITESEG_INLINE __m512i round_two(__mmask32 mask, Vec low, Vec high) {
  return reinterpret_cast<__m512i>(_mm512_maskz_cvtne2ps_pbh(mask, high.v, low.v));
}

// Left side of a product. Row m is the concatenation of `runs` runs of `words` words, run r at first[r] + m * step. If
// Pair, the block computes two rows of the map at once and the second one's runs follow the first one's.
struct Left {
  const bf16* const* first;
  const bf16* const* second;
  int64_t runs, words, step;
};

#if defined(__AMX_BF16__)
// rows [from, to) of the block at row m0 to the store; where Pair, each with the same row of the second group
template <bool Pair, int V, typename Store>
LITESEG_INLINE void store_rows(const float* sums, int64_t m0, int64_t from, int64_t to, const Store& store) {
  const auto put = [&](auto height, int64_t at) LITESEG_INLINE_LAMBDA {
    constexpr int H = decltype(height)::value;
    Vec acc[Pair ? 2 * H : H][V];
#pragma GCC unroll 8
    for (int m = 0; m < (Pair ? 2 * H : H); ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t row = m < H ? at + m : kTileRows + at + m - H;
        acc[m][v] = load(sums + (row * V + v) * Vec::width);
      }
    }
    store.template put<H, V>(m0 + at, acc);
  };
  for (; from + 4 <= to; from += 4) {
    put(std::integral_constant<int, 4>{}, from);
  }
  for (; from < to; ++from) {
    put(std::integral_constant<int, 1>{}, from);
  }
}

// rows [0, count) of one panel, V * 16 columns of it
template <bool Pair, int V, typename Store>
LITESEG_ONE_COPY void dot_panel(int64_t count, const Left& left, const float* b, const float* bias,
                                const Store& store) {
  const int64_t height = min_i(kTileRows, count);
  const Tiles tiles(height, left.words % kTileWords);
  alignas(64) float sums[2 * kTileRows * V * kTileWords];
  const int64_t step = 2 * left.step;
  // G: groups of rows, of the two maps if Pair, else neighbouring ones of the same. The last block may begin among rows
  // that are done: those are not stored again.
  const auto block = [&](auto groups, int64_t m, int64_t done, int64_t end) LITESEG_INLINE_LAMBDA {
    constexpr int G = decltype(groups)::value;
    start_sums<G, V>(bias);
    const float* right = b;
    for (int64_t r = 0; r < left.runs; ++r, right += left.words * kPanel) {
      const bf16* a0 = left.first[r] + m * left.step;
      const bf16* a1 = Pair ? left.second[r] + m * left.step : a0 + kTileRows * left.step;
      add_run<G, V>(a0, a1, step, left.words, right, kPanel * sizeof(float));
    }
    store_sums<G, V>(sums);
    store_rows<Pair, V>(sums, m, done - m, end - m, store);
  };
  int64_t m = 0;
  for (; !Pair && m + 2 * kTileRows <= count; m += 2 * kTileRows) {
    block(std::integral_constant<int, 2>{}, m, m, m + 2 * kTileRows);
  }
  while (m < count) {
    const int64_t end = min_i(m + height, count);
    block(std::integral_constant<int, Pair ? 2 : 1>{}, end - height, m, end);
    m = end;
  }
}
#else
template <int H, bool Pair, int V, typename Store>
LITESEG_INLINE void dot_block(const Left& left, int64_t m0, const float* b, const float* bias, const Store& store) {
  constexpr int rows = Pair ? 2 * H : H;
  Vec acc[rows][V];
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load(bias + v * Vec::width);
    }
  }
  for (int64_t r = 0; r < left.runs; ++r) {
    const bf16* first = left.first[r] + m0 * left.step;
    const bf16* second = Pair ? left.second[r] + m0 * left.step : nullptr;
// unrolled: 7 to 17 % faster if K is small
#pragma GCC unroll 4
    for (int64_t k = 0; k < left.words; ++k, b += kPanel) {
      __m512i bv[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        bv[v] = load_words(b + v * Vec::width);
      }
#pragma GCC unroll 12
      for (int m = 0; m < rows; ++m) {
        const bf16* a = m < H ? first + m * left.step : second + (m - H) * left.step;
        const __m512i av = broadcast_word(a + 2 * k);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          acc[m][v] = dot(acc[m][v], av, bv[v]);
        }
      }
    }
  }
  store.template put<H, V>(m0, acc);
}

// rows [0, count) of one panel, V * 16 columns of it
template <bool Pair, int V, typename Store>
LITESEG_ONE_COPY void dot_panel(int64_t count, const Left& left, const float* b, const float* bias,
                                const Store& store) {
  in_blocks<Pair ? kRows / 2 : kRows>(count, [&](auto height, int64_t m) LITESEG_INLINE_LAMBDA {
    dot_block<decltype(height)::value, Pair, V>(left, m, b, bias, store);
  });
}
#endif

// columns [n, n + kPanel) of the product; `panels` is that panel, `make(n, cols)` gives its store
template <bool Pair, typename Make>
void dot_columns(int64_t n, int64_t n_count, int64_t count, const Left& left, const float* panel, const float* bias,
                 const Make& make) {
  const int64_t cols = min_i(kPanel, n_count - n);
  if (cols > Vec::width) {
    dot_panel<Pair, 2>(count, left, panel, bias + n, make(n, cols));
  } else {
    dot_panel<Pair, 1>(count, left, panel, bias + n, make(n, cols));
  }
}

// The stores. Columns after the last of a map become zeros up to whole vectors.

// bf16 pixels, with a residual of the same layout or none
struct StoreHalf {
  bf16* out;
  int64_t ldo;
  const bf16* residual;
  int64_t ldr;
  Clamp clamp;
  __mmask32 mask;

  LITESEG_INLINE StoreHalf(bf16* out, int64_t ldo, const bf16* residual, int64_t ldr, int activation, int64_t cols)
      : out(out),
        ldo(ldo),
        residual(residual),
        ldr(ldr),
        clamp(activation),
        mask(static_cast<__mmask32>((uint64_t{1} << cols) - 1)) {}

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, Vec (&acc)[H][V]) const {
    if (residual != nullptr) {
#pragma GCC unroll 12
      for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          acc[m][v] = add(acc[m][v], load(residual + (m0 + m) * ldr + v * Vec::width));
        }
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < H; ++m) {
      bf16* p = out + (m0 + m) * ldo;
      const Vec low = clamp(acc[m][0]);
      if constexpr (V == 2) {
        _mm512_storeu_si512(p, round_two(mask, low, clamp(acc[m][1])));
      } else {
        const __m512i values = round_two(mask, low, zero());
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(values));
      }
    }
  }
};

// float pixels of any number of channels, with a float residual of the same layout or none
struct StoreFloat {
  float* out;
  int64_t ldo;
  const float* residual;
  Clamp clamp;
  int64_t cols;

  LITESEG_INLINE StoreFloat(float* out, int64_t ldo, const float* residual, int activation, int64_t cols)
      : out(out), ldo(ldo), residual(residual), clamp(activation), cols(cols) {}

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, Vec (&acc)[H][V]) const {
#pragma GCC unroll 12
    for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t at = (m0 + m) * ldo + v * Vec::width;
        const int64_t n = cols - v * Vec::width;
        Vec sum = acc[m][v];
        if (residual != nullptr) {
          sum = add(sum, load_partial(residual + at, n));
        }
        store_partial(out + at, clamp(sum), n);
      }
    }
  }
};

// a [count][lda] times panels, K = k_count: pixels of bf16
LITESEG_INLINE void dot_to_half(int64_t count, int64_t n_count, int64_t k_count, const bf16* a, int64_t lda,
                                const float* panels, const float* bias, bf16* out, int64_t ldo, const bf16* residual,
                                int64_t ldr, int activation) {
  const Left left{&a, nullptr, 1, words_of(k_count), lda};
  for (int64_t n = 0; n < n_count; n += kPanel) {
    dot_columns<false>(n, n_count, count, left, panels + n * left.words, bias, [&](int64_t at, int64_t cols) {
      return StoreHalf(out + at, ldo, residual == nullptr ? nullptr : residual + at, ldr, activation, cols);
    });
  }
}

// the same to pixels of float; the panels have k_total rows, of which [k0, k0 + k_count) take part (k0 even)
LITESEG_INLINE void dot_to_float(int64_t count, int64_t n_count, int64_t k_total, int64_t k0, int64_t k_count,
                                 const bf16* a, int64_t lda, const float* panels, const float* bias, float* out,
                                 int64_t ldo, const float* residual, int activation) {
  const Left left{&a, nullptr, 1, words_of(k_count), lda};
  for (int64_t n = 0; n < n_count; n += kPanel) {
    dot_columns<false>(
        n, n_count, count, left, panels + n * words_of(k_total) + k0 / 2 * kPanel, bias, [&](int64_t at, int64_t cols) {
          return StoreFloat(out + at, ldo, residual == nullptr ? nullptr : residual + at, activation, cols);
        });
  }
}

}  // namespace liteseg::LITESEG_ISA
