// Pointwise convolution on a tile: out[m][n] = act(bias[n] + sum_k a[m][k] * b[k][n] + residual[m][n]).
//
// b is packed in panels of kPanel columns, [ceil(N / kPanel)][K][kPanel] floats, zero-padded; bias likewise padded. The
// accumulators of a kRows x kPanel block stay in registers for the whole of K. Every output is one chain of
// multiply-adds in the order of k whatever the block it falls into, so results do not depend on the tiling.
#pragma once

#include <type_traits>

#include "engine/blocks/copy.h"

namespace liteseg::LITESEG_ISA {

constexpr int64_t kPanel = 2 * Vec::width;
constexpr int kRows = kProductRows;

// weight [N, K] at any strides -> panels
template <typename T>
void pack_panels(const T* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t k, float* panels) {
  for (int64_t j = 0; j < n; j += kPanel) {
    const int64_t cols = min_i(kPanel, n - j);
    float* panel = panels + j * k;
    if (cols < kPanel) {
      for (int64_t i = 0; i < k * kPanel; ++i) {
        panel[i] = 0.0f;
      }
    }
    transpose_copy(weight + j * n_stride, n_stride, k_stride, cols, k, panel, kPanel);
  }
}

// applied to a finished sum before it is stored: + residual, then the activation
template <typename T>
struct Epilogue {
  const T* residual;  // [M][N] or null
  int64_t residual_stride;
  int activation;
  float slope;
};

// Where a row of the left side has its input k: at k, or at index[k].
struct InOrder {
  LITESEG_INLINE int64_t operator()(int64_t k) const {
    return k;
  }
};
struct ByIndex {
  const int32_t* index;
  LITESEG_INLINE int64_t operator()(int64_t k) const {
    return index[k];
  }
};

// Calls block(height, first row) for `count` rows, where height is an integral constant: at most Most, and one of few, for
// each is code of its own.
template <int Most, typename Block>
LITESEG_INLINE void in_blocks(int64_t count, const Block& block) {
  int64_t m = 0;
  const auto some = [&](auto height) LITESEG_INLINE_LAMBDA {
    constexpr int H = decltype(height)::value;
    if constexpr (H <= Most) {
      for (; m + H <= count; m += H) {
        block(height, m);
      }
    }
  };
  some(std::integral_constant<int, Most>{});
  some(std::integral_constant<int, 8>{});
  some(std::integral_constant<int, 4>{});
  some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

// One M x V block of sums. If Fetches, prefetch the next panel (same size as b) into L2.
template <typename T, int M, int V, bool Fetches = false, typename Order>
LITESEG_ONE_COPY void gemm_block(const float* a, int64_t lda, const float* b, int64_t k_count, const float* bias,
                                 T* out, int64_t ldo, int64_t cols, const Epilogue<T>& epilogue, Order order,
                                 const float* next = nullptr) {
  Vec acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      acc[m][v] = load(bias + v * Vec::width);
    }
  }
  for (int64_t k = 0; k < k_count; ++k) {
    Vec bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      bv[v] = load(b + k * kPanel + v * Vec::width);
    }
    if (Fetches) {
      constexpr int64_t line = 16;
      for (int64_t i = 0; i < kPanel; i += line) {
        prefetch(next + k * kPanel + i);
      }
    }
    const int64_t place = order(k);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Vec av = set1(a[m * lda + place]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        acc[m][v] = fma(av, bv[v], acc[m][v]);
      }
    }
  }
  if (epilogue.residual != nullptr) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t col = v * Vec::width;
        const T* p = epilogue.residual + m * epilogue.residual_stride + col;
        acc[m][v] = add(acc[m][v], load_partial(p, cols - col));
      }
    }
  }
  // no vector branches on the activation
  const auto finish = [&](const auto& activation) LITESEG_INLINE_LAMBDA {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const int64_t col = v * Vec::width;
        store_partial(out + m * ldo + col, activation(acc[m][v]), cols - col);
      }
    }
  };
  if (epilogue.activation == cpu::kLeakyRelu) {
    const Vec slope = set1(epilogue.slope);
    finish([&](Vec sum) LITESEG_INLINE_LAMBDA { return activate(sum, cpu::kLeakyRelu, slope); });
  } else {
    finish(Clamp(epilogue.activation));
  }
}

// One panel of columns for all rows. next: the panel of the following call, to be prefetched while this one is used;
// null where it is in cache already.
template <typename T, int V, typename Order = InOrder>
LITESEG_ONE_COPY void gemm_panel(int64_t m_count, const float* a, int64_t lda, const float* b, int64_t k_count,
                                 const float* bias, T* out, int64_t ldo, int64_t cols, Epilogue<T> epilogue,
                                 Order order = {}, const float* next = nullptr) {
  int64_t m = 0;
  const auto advance = [&](int64_t rows) {
    m += rows;
    a += rows * lda;
    out += rows * ldo;
    if (epilogue.residual != nullptr) {
      epilogue.residual += rows * epilogue.residual_stride;
    }
  };
  if (next != nullptr && m_count >= kRows) {
    gemm_block<T, kRows, V, true>(a, lda, b, k_count, bias, out, ldo, cols, epilogue, order, next);
    advance(kRows);
  }
  for (; m + kRows <= m_count; advance(kRows)) {
    gemm_block<T, kRows, V>(a, lda, b, k_count, bias, out, ldo, cols, epilogue, order);
  }
  for (; kRows > 8 && m + 8 <= m_count; advance(8)) {
    gemm_block<T, 8, V>(a, lda, b, k_count, bias, out, ldo, cols, epilogue, order);
  }
  for (; m + 4 <= m_count; advance(4)) {
    gemm_block<T, 4, V>(a, lda, b, k_count, bias, out, ldo, cols, epilogue, order);
  }
  for (; m < m_count; advance(1)) {
    gemm_block<T, 1, V>(a, lda, b, k_count, bias, out, ldo, cols, epilogue, order);
  }
}

// columns [n, n + kPanel) of the product
template <typename T, typename Order = InOrder>
void gemm_columns(int64_t n, int64_t m_count, int64_t n_count, int64_t k_count, const float* a, int64_t lda,
                  const float* panels, const float* bias, T* out, int64_t ldo, const Epilogue<T>& epilogue,
                  Order order = {}) {
  const int64_t cols = min_i(kPanel, n_count - n);
  Epilogue<T> part = epilogue;
  if (part.residual != nullptr) {
    part.residual += n;
  }
  const float* b = panels + n * k_count;
  if (cols > Vec::width) {
    gemm_panel<T, 2>(m_count, a, lda, b, k_count, bias + n, out + n, ldo, cols, part, order);
  } else {
    gemm_panel<T, 1>(m_count, a, lda, b, k_count, bias + n, out + n, ldo, cols, part, order);
  }
}

template <typename T>
void gemm(int64_t m_count, int64_t n_count, int64_t k_count, const float* a, int64_t lda, const float* panels,
          const float* bias, T* out, int64_t ldo, const Epilogue<T>& epilogue) {
  for (int64_t n = 0; n < n_count; n += kPanel) {
    gemm_columns(n, m_count, n_count, k_count, a, lda, panels, bias, out, ldo, epilogue);
  }
}

}  // namespace liteseg::LITESEG_ISA
