// Grouped pointwise convolution on a tile of pixels: few inputs and few outputs a group.
//
// The weights of a group are panels of up to three vectors of columns, [K][columns of the panel], zero-padded to whole
// vectors; bias likewise padded. A group of 48 outputs is thus one panel with AVX-512, without an unfilled block, and
// each input is read once. Every output is one chain of multiply-adds in the order of k, so results do not depend on
// how the pixels are tiled.
#pragma once

#include "engine/blocks/gemm.h"
#include "engine/blocks/grouped_pointwise.h"

namespace liteseg::LITESEG_ISA {

constexpr int64_t kGroupedPanel = cpu::kGroupedVectors * Vec::width;

// pixels whose sums are in registers together, for panels of V vectors
template <int V>
constexpr int grouped_rows() {
  return V == 3 ? 4 : V == 2 && kVectorRegisters < 32 ? 6 : 12;
}

template <typename T, int M, int V, int Activation, bool Adds, typename Order>
LITESEG_INLINE void grouped_block(const float* a, int64_t lda, const float* b, int64_t k_count, const float* bias,
                                  T* out, int64_t ldo, int64_t cols, const T* residual, int64_t ldr, Order order) {
  Vec acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load(bias + v * Vec::width);
    }
  }
  for (int64_t k = 0; k < k_count; ++k, b += V * Vec::width) {
    Vec bv[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      bv[v] = load(b + v * Vec::width);
    }
    const float* at = a + order(k);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Vec av = set1(at[m * lda]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        acc[m][v] = fma(av, bv[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const int64_t col = v * Vec::width;
      Vec sum = acc[m][v];
      if (Adds) {
        sum = add(sum, load_partial(residual + m * ldr + col, cols - col));
      }
      store_partial(out + m * ldo + col, activate(sum, Activation, zero()), cols - col);
    }
  }
}

template <typename T, int V, int Activation, bool Adds, typename Order>
void grouped_panel(int64_t m_count, const float* a, int64_t lda, const float* b, int64_t k_count, const float* bias,
                   T* out, int64_t ldo, int64_t cols, const T* residual, int64_t ldr, Order order) {
  constexpr int rows = grouped_rows<V>();
  int64_t m = 0;
  const auto advance = [&](int64_t count) {
    m += count;
    a += count * lda;
    out += count * ldo;
    if (Adds) {
      residual += count * ldr;
    }
  };
  for (; m + rows <= m_count; advance(rows)) {
    grouped_block<T, rows, V, Activation, Adds>(a, lda, b, k_count, bias, out, ldo, cols, residual, ldr, order);
  }
  for (; rows > 4 && m + 4 <= m_count; advance(4)) {
    grouped_block<T, 4, V, Activation, Adds>(a, lda, b, k_count, bias, out, ldo, cols, residual, ldr, order);
  }
  for (; m < m_count; advance(1)) {
    grouped_block<T, 1, V, Activation, Adds>(a, lda, b, k_count, bias, out, ldo, cols, residual, ldr, order);
  }
}

// columns [column, column + kGroupedPanel) of one group; a: its inputs in the given order, out and residual (null:
// none) start at the first channel of all groups
template <int Activation, bool Adds, typename T, typename Order>
void grouped_columns(const cpu::GroupedPointwise& p, int64_t group, int64_t column, int64_t m_count, const float* a,
                     int64_t lda, T* out, int64_t ldo, const T* residual, int64_t ldr, Order order) {
  const int64_t cols = min_i(kGroupedPanel, p.out - column);
  const float* b = p.weight + group * p.weight_stride + column * p.in;
  const float* bias = p.bias + group * p.bias_stride + column;
  const int64_t first = group * p.out + column;
  out += first;
  residual = Adds ? residual + first : nullptr;
  if (cols > 2 * Vec::width) {
    grouped_panel<T, 3, Activation, Adds>(m_count, a, lda, b, p.in, bias, out, ldo, cols, residual, ldr, order);
  } else if (cols > Vec::width) {
    grouped_panel<T, 2, Activation, Adds>(m_count, a, lda, b, p.in, bias, out, ldo, cols, residual, ldr, order);
  } else {
    grouped_panel<T, 1, Activation, Adds>(m_count, a, lda, b, p.in, bias, out, ldo, cols, residual, ldr, order);
  }
}

// body(group, column) for each panel of the weights; column counts within the group
template <typename Body>
LITESEG_INLINE void for_each_panel(const cpu::GroupedPointwise& p, const Body& body) {
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t column = 0; column < p.out; column += kGroupedPanel) {
      body(group, column);
    }
  }
}

}  // namespace liteseg::LITESEG_ISA
