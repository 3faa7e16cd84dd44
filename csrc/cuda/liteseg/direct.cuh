// Products whose operands are read as they lie, 16 bytes a lane, without a copy in shared memory made for them.
//
// The depth of a product may be summed in any order that both operands keep: a lane takes 16 adjacent bytes of a row of
// either operand, and what mma numbers as the columns of two steps are columns of these.
#pragma once

#include <liteseg/tile.cuh>

#include <cstring>

namespace liteseg {

// 16 bytes of a row from column k on, zeros from `depth` on; `vector`: adjacent, aligned, and `depth` ends a vector
template <typename T>
__device__ Vector<T> read_vector(const T* row, int64_t stride, int k, int depth, bool vector) {
  if (!vector) {
    return gather(row, stride, k, depth);
  }
  return k < depth ? *reinterpret_cast<const Vector<T>*>(row + k) : Vector<T>{};
}

// acc[16 * kRows rows x 8 * kTiles columns] += left * matrix^T for one warp; the lane holds elements as `multiply` has
// them. left(i, k): 16 bytes of row lane / 4 + 8 * i from k on, zeros beyond the matrix's columns.
template <typename M, int kRows, int kTiles, typename Left>
__device__ void multiply_direct(float (&acc)[kRows][kTiles][4], const Left& left,
                                const Matrix<typename M::Element>& matrix, int lane) {
  using T = typename M::Element;
  using S = Shape<T>;
  const int depth = matrix.columns, tiles = (matrix.rows + 7) / 8;
  const auto right = [&matrix](int row, int k) {
    return read_vector(matrix.data + row * matrix.row_stride, matrix.column_stride, k,
                       row < matrix.rows ? matrix.columns : 0, matrix.vector);
  };
  if constexpr (M::kTensorCores) {
    struct Registers {
      uint32_t values[4];
    };
    const auto registers = [](const Vector<T>& vector) {
      Registers result;
      memcpy(&result, &vector, sizeof(result));
      if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          result.values[i] = to_tf32(result.values[i]);
        }
      }
      return result;
    };
#pragma unroll 1
    for (int first = 0; first < depth; first += S::kChunk) {
      const int k = first + lane % 4 * S::kVector;
      Registers a[2 * kRows], b[kTiles];
#pragma unroll
      for (int i = 0; i < 2 * kRows; ++i) {
        a[i] = registers(left(i, k));
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (t < tiles) {
          b[t] = registers(right(t * 8 + lane / 4, k));
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (t < tiles) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const Registers &upper = a[2 * r], &lower = a[2 * r + 1];
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              const uint32_t rows[4] = {upper.values[i], lower.values[i], upper.values[i + 1], lower.values[i + 1]};
              mma(acc[r][t], rows, b[t].values[i], b[t].values[i + 1], T(0.0f));
            }
          }
        }
      }
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < depth; k += S::kVector) {
      Vector<T> a[2 * kRows];
#pragma unroll
      for (int i = 0; i < 2 * kRows; ++i) {
        a[i] = left(i, k);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (t < tiles) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Vector<T> b = right(t * 8 + lane % 4 * 2 + e, k);
#pragma unroll
            for (int i = 0; i < 2 * kRows; ++i) {
#pragma unroll
              for (int j = 0; j < S::kVector; ++j) {
                float& sum = acc[i / 2][t][i % 2 * 2 + e];
                sum = fmaf(a[i].values[j], b.values[j], sum);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace liteseg
