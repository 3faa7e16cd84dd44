// Pair rows: two neighbouring rows of a bf16 map, interleaved value by value, and 3x3 depthwise convolution on them.
//
// Row pair q holds the rows 2q and 2q + 1 of a map as [pad + W + pad][padded(C)] words, the even row in the low half.
// One vdpbf16ps then does two taps of a column at once, so a 3x3 window costs six instead of nine multiply-adds, and no
// bf16 is widened. On processors with AMX it is slower than float multiply-adds (whole inverted residuals: 40 to 54 G
// products a second against 57 to 80 in float32), so for them the words are taken apart, by one shift or mask for three
// multiply-adds. A row outside of the image is zero if the other one of its pair is inside; pairs that lie outside as a
// whole are left out.
#pragma once

#include "engine/blocks/gemm_bf16.h"

namespace liteseg::LITESEG_ISA {

// Depthwise weights come in sets [3 columns][padded(C)] of words, one for each way in which the 3 kernel rows can fall
// on a pair. kEvenIOddJ: the pair's even row uses kernel row I, its odd row uses row J; a row that is not named is not
// read by this output.
enum TapSet : int { kOdd0, kEven1Odd2, kEven0Odd1, kEven2, kEven0, kEven1, kOdd1, kOdd2 };

// one row pair and the set of weights that applies to it
struct PairTap {
  const Word* row;
  const float* weight;
  bool even, odd;  // which of its rows the weights are not all zero for
};

// The rows of a pair that one pass over its words multiplies by their weights.
enum class Part { both, even, odd };

template <Part part>
LITESEG_INLINE auto load_part(const void* p) {
  const __m512i words = load_words(p);
  if constexpr (part == Part::both) {
    return words;
  } else if constexpr (part == Part::even) {
    return Vec{_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
  } else {
    return Vec{_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }
}
LITESEG_INLINE Vec add_product(__m512i a, __m512i b, Vec sum) {
  return dot(sum, a, b);
}
LITESEG_INLINE Vec add_product(Vec a, Vec b, Vec sum) {
  return fma(a, b, sum);
}

// interleaves 16 values of the even (low half of `rows`) and of the odd row
LITESEG_INLINE __m512i interleave(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}

// two rows of a product become a pair row
struct StorePairs {
  Word* out;
  int64_t ldo;
  Clamp clamp;
  __mmask32 mask[2];

  // odd: whether the odd row lies in the image
  LITESEG_INLINE StorePairs(Word* out, int64_t ldo, int activation, bool odd, int64_t cols)
      : out(out), ldo(ldo), clamp(activation) {
    for (int v = 0; v < 2; ++v) {
      const int64_t n = max_i(0, min_i(Vec::width, cols - v * Vec::width));
      const __mmask32 inside = static_cast<__mmask32>((1u << n) - 1u);
      mask[v] = inside | (odd ? inside << Vec::width : 0u);
    }
  }

  template <int H, int V>
  LITESEG_INLINE void put(int64_t m0, Vec (&acc)[2 * H][V]) const {
#pragma GCC unroll 12
    for (int m = 0; m < H; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const __m512i rows = round_two(mask[v], clamp(acc[m][v]), clamp(acc[m + H][v]));
        _mm512_storeu_si512(out + (m0 + m) * ldo + v * Vec::width, interleave(rows));
      }
    }
  }
};

struct PairRow {
  int64_t c;         // channels
  int64_t ld;        // words from one pixel to the next, padded(c)
  int64_t stride;    // horizontal
  int64_t dilation;  // likewise; no tap leaves the padded row
  const float* bias;
  int activation;
};

// Adds what a tap gives to P outputs of V * 16 channels. S: the stride if the dilation is 1, known at compile time so
// that a column which several outputs read is loaded once; 0 for any stride and dilation.
template <int P, int V, int S, Part part>
LITESEG_INLINE void add_tap(Vec (&acc)[P][V], const PairTap& tap, const PairRow& g, int64_t x, int64_t c) {
  const Word* row = tap.row + x * g.ld + c;
  decltype(load_part<part>(row)) w[3][V];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      w[j][v] = load_part<part>(tap.weight + j * g.ld + c + v * Vec::width);
    }
  }
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int column = 0; column < (P - 1) * S + 3; ++column) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const auto value = load_part<part>(row + column * g.ld + v * Vec::width);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          const int p = (column - j) / S;
          if (column >= j && p * S + j == column && p < P) {
            acc[p][v] = add_product(value, w[j][v], acc[p][v]);
          }
        }
      }
    }
  } else {
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const Word* value = row + (p * g.stride + j * g.dilation) * g.ld + v * Vec::width;
          acc[p][v] = add_product(load_part<part>(value), w[j][v], acc[p][v]);
        }
      }
    }
  }
}

template <int P, int V, int S>
LITESEG_INLINE void depthwise_pairs_block(const PairTap* taps, int64_t count, const PairRow& g, const Clamp& clamp,
                                          int64_t x, int64_t c, bf16* out, int64_t ldo) {
  Vec acc[P][V];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[p][v] = load(g.bias + c + v * Vec::width);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
#if defined(__AMX_BF16__)
    if (taps[i].even) {
      add_tap<P, V, S, Part::even>(acc, taps[i], g, x, c);
    }
    if (taps[i].odd) {
      add_tap<P, V, S, Part::odd>(acc, taps[i], g, x, c);
    }
#else
    add_tap<P, V, S, Part::both>(acc, taps[i], g, x, c);
#endif
  }
  const int64_t n = g.c - c;
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << min_i(n, kPanel)) - 1);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    bf16* to = out + p * ldo + c;
    if constexpr (V == 2) {
      _mm512_storeu_si512(to, round_two(mask, clamp(acc[p][0]), clamp(acc[p][1])));
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                          _mm512_castsi512_si256(round_two(mask, clamp(acc[p][0]), zero())));
    }
  }
}

template <int P, int S>
void depthwise_pairs_pixels(const PairTap* taps, int64_t count, const PairRow& g, int64_t x, bf16* out, int64_t ldo) {
  const Clamp clamp(g.activation);
  int64_t c = 0;
  for (; c + kPanel <= g.ld; c += kPanel) {
    depthwise_pairs_block<P, 2, S>(taps, count, g, clamp, x, c, out, ldo);
  }
  if (c < g.ld) {
    depthwise_pairs_block<P, 1, S>(taps, count, g, clamp, x, c, out, ldo);
  }
}

template <int S>
void depthwise_pairs_run(const PairTap* taps, int64_t count, const PairRow& g, int64_t x0, int64_t outputs, bf16* out,
                         int64_t ldo) {
  constexpr int64_t most = 6;
  int64_t done = 0;
  for (int64_t blocks = div_up(outputs, most); blocks > 0; --blocks) {
    const int64_t pixels = div_up(outputs - done, blocks);
    const int64_t x = x0 + done * g.stride;
    bf16* to = out + done * ldo;
    switch (pixels) {
      case 1:
        depthwise_pairs_pixels<1, S>(taps, count, g, x, to, ldo);
        break;
      case 2:
        depthwise_pairs_pixels<2, S>(taps, count, g, x, to, ldo);
        break;
      case 3:
        depthwise_pairs_pixels<3, S>(taps, count, g, x, to, ldo);
        break;
      case 4:
        depthwise_pairs_pixels<4, S>(taps, count, g, x, to, ldo);
        break;
      case 5:
        depthwise_pairs_pixels<5, S>(taps, count, g, x, to, ldo);
        break;
      default:
        depthwise_pairs_pixels<6, S>(taps, count, g, x, to, ldo);
    }
    done += pixels;
  }
}

// `outputs` outputs of one row; the first one's left column is x0 of the padded rows
LITESEG_INLINE void depthwise_pairs(const PairTap* taps, int64_t count, const PairRow& g, int64_t x0, int64_t outputs,
                                    bf16* out, int64_t ldo) {
  if (g.dilation == 1 && g.stride == 1) {
    depthwise_pairs_run<1>(taps, count, g, x0, outputs, out, ldo);
  } else if (g.dilation == 1 && g.stride == 2) {
    depthwise_pairs_run<2>(taps, count, g, x0, outputs, out, ldo);
  } else {
    depthwise_pairs_run<0>(taps, count, g, x0, outputs, out, ldo);
  }
}

// Lists the row pairs of a map of h rows that a 3-row window centred on row y covers, each with its set of weights.
// row(q) returns pair q. Returns the number of pairs listed.
template <typename Row>
LITESEG_INLINE int64_t pair_taps(int64_t y, int64_t dilation, int64_t h, const float* weight, int64_t ld,
                                 const Row& row, PairTap taps[3]) {
  int64_t count = 0;
  const auto add_set = [&](int64_t q, int set) LITESEG_INLINE_LAMBDA {
    if (q >= 0 && 2 * q < h) {
      const bool even = set != kOdd0 && set != kOdd1 && set != kOdd2;
      const bool odd = set != kEven0 && set != kEven1 && set != kEven2;
      taps[count++] = {row(q), weight + set * 3 * ld, even, odd};
    }
  };
  if (dilation == 1) {
    const int64_t q = y >> 1;
    if (y & 1) {
      add_set(q, kEven0Odd1);
      add_set(q + 1, kEven2);
    } else {
      add_set(q - 1, kOdd0);
      add_set(q, kEven1Odd2);
    }
    return count;
  }
  constexpr int sets[3][2] = {{kEven0, kOdd0}, {kEven1, kOdd1}, {kEven2, kOdd2}};
  for (int i = 0; i < 3; ++i) {
    const int64_t at = y + (i - 1) * dilation;
    if (at >= 0 && at < h) {
      add_set(at >> 1, sets[i][at & 1]);
    }
  }
  return count;
}

LITESEG_INLINE void zero_words(Word* p, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::width) {
    _mm512_storeu_si512(p + i, _mm512_setzero_si512());
  }
}

}  // namespace liteseg::LITESEG_ISA
