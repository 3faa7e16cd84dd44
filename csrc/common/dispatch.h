// From run-time dtype and size to template arguments. A functor receives a value of the chosen type as a tag:
//   dispatch_floating("op", "x", x.scalar_type(), [&](auto tag) { using T = decltype(tag); run<T>(x); });
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>

#include "common/tensors.h"

namespace liteseg {

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

template <typename F>
decltype(auto) dispatch_floating(const char* op, const char* argument, torch::headeronly::ScalarType dtype, F&& f) {
  using torch::headeronly::ScalarType;
  LITESEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, op, argument,
                "float32, float16 or bfloat16", dtype_text(dtype));
  switch (dtype) {
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

// Offsets are 32 bits wide unless the largest one (in elements) does not fit: 64-bit index arithmetic costs registers
// on a GPU, and 32-bit arithmetic is silently wrong beyond 2^31 - 1 elements.
template <typename F>
decltype(auto) dispatch_index(int64_t largest, F&& f) {
  if (largest <= std::numeric_limits<int32_t>::max()) {
    return f(int32_t{});
  }
  return f(int64_t{});
}

}  // namespace liteseg
