// Between torch's tensors and the arguments of the kernels: host code only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <liteseg/tile.cuh>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "common/dispatch.h"
#include "common/tensors.h"

namespace liteseg {

inline bool aligned16(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

template <typename T>
Map<T> map_of(const Tensor& t) {
  constexpr int64_t kVector = Shape<std::remove_const_t<T>>::kVector;
  bool vector = aligned16(t) && t.size(1) % kVector == 0 && t.stride(1) == 1;
  for (const int64_t d : {0, 2, 3}) {
    vector = vector && (t.size(d) == 1 || t.stride(d) % kVector == 0);
  }
  T* data = static_cast<T*>(t.mutable_data_ptr());
  return {data,
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3),
          static_cast<int>(t.size(1)),
          static_cast<int>(t.size(2)),
          static_cast<int>(t.size(3)),
          vector};
}

// columns [first, first + columns) of a pointwise weight [rows, C, 1, 1]
template <typename T>
Matrix<T> matrix_of(const Tensor& weight, int64_t first = 0, int64_t columns = -1) {
  constexpr int64_t kVector = Shape<T>::kVector;
  columns = columns < 0 ? weight.size(1) - first : columns;
  const T* data = static_cast<const T*>(weight.const_data_ptr()) + first * weight.stride(1);
  const bool vector = reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % kVector == 0 && weight.stride(1) == 1 &&
                      (weight.size(0) == 1 || weight.stride(0) % kVector == 0);
  return {data,  weight.stride(0), weight.stride(1), static_cast<int>(weight.size(0)), static_cast<int>(columns),
          vector};
}

template <typename T>
Matrix<T> transposed(const Matrix<T>& matrix) {
  return {matrix.data, matrix.column_stride, matrix.row_stride, matrix.columns, matrix.rows, false};
}

// the same values, contiguous
inline Tensor dense(const Tensor& t) {
  int64_t stride = 1;
  for (int64_t d = t.dim(); d-- > 0;) {
    if (t.size(d) > 1 && t.stride(d) != stride) {
      return torch::stable::contiguous(t);
    }
    stride *= t.size(d);
  }
  return t;
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}

template <typename T>
const T* pointer(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

inline Tensor empty_map(const DeviceScope& scope, const std::vector<int64_t>& shape, ScalarType dtype,
                        bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, scope.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline Tensor empty_dense(const DeviceScope& scope, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype, std::nullopt, scope.device());
}

// positions and channels are ints inside the kernels, offsets are not
inline void check_sizes(const char* op, const char* argument, const Tensor& t) {
  check_4d(op, argument, t);
  for (int64_t d = 0; d < 4; ++d) {
    LITESEG_CHECK(t.size(d) < std::numeric_limits<int32_t>::max() / 64, op, argument, "each size below 2^25",
                  shape_text(t));
  }
}

inline int64_t convolved(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// a tile of `pixels` outputs, square unless the map is flat
inline Window make_window(const Tensor& out, int pixels, const std::vector<int64_t>& kernel,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation) {
  int tile_height = pixels >= 64 ? 8 : pixels >= 16 ? 4 : pixels >= 4 ? 2 : 1;
  while (tile_height > 1 && tile_height / 2 >= out.size(2)) {
    tile_height /= 2;
  }
  const auto axis = [&](size_t i, int tile) {
    return make_axis(static_cast<int>(kernel[i]), static_cast<int>(stride[i]), static_cast<int>(padding[i]),
                     static_cast<int>(dilation[i]), tile);
  };
  return {axis(0, tile_height), axis(1, pixels / tile_height)};
}

inline int64_t tiles_of(const Tensor& out, const Window& window) {
  const auto up = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
  return out.size(0) * up(out.size(2), window.y.tile) * up(out.size(3), window.x.tile);
}

template <typename F>
void dispatch_math(const char* op, const char* argument, ScalarType dtype, bool allow_tf32, const F& f) {
  dispatch_floating(op, argument, dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, Half>) {
      f(Fp16{});
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      f(Bf16{});
    } else if (allow_tf32) {
      f(Tf32{});
    } else {
      f(Fp32{});
    }
  });
}

// Calls attempt(pixels, stages) -> bytes of shared memory with ever smaller tiles until one fits.
struct Fit {
  int pixels, stages;
  int64_t bytes;
};

template <typename F>
Fit fit_shared(const char* op, int64_t limit, const F& attempt) {
  for (const int pixels : {64, 16, 4, 1}) {
    for (const int stages : {2, 1}) {
      const int64_t bytes = attempt(pixels, stages);
      if (bytes <= limit) {
        return {pixels, stages, bytes};
      }
    }
  }
  LITESEG_CHECK(false, op, "x", text("channels and a kernel that fit ", limit, " bytes of shared memory"), "more");
  return {};
}

}  // namespace liteseg
