// Checks and rules about tensors that the CPU and the CUDA side share. Never include it where the code is compiled for
// a wider instruction set: torch's headers and this one define inline functions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "common/check.h"

namespace liteseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// "[2, 19, 64, 128]"
inline std::string shape_text(const torch::stable::Tensor& tensor) {
  std::ostringstream stream;
  stream << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    stream << (i == 0 ? "" : ", ") << tensor.size(i);
  }
  stream << ']';
  return stream.str();
}

inline const char* dtype_text(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline void check_4d(const char* op, const char* argument, const Tensor& t) {
  LITESEG_CHECK(t.dim() == 4, op, argument, "4 dimensions", shape_text(t));
}

inline void check_shape(const char* op, const char* argument, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  std::ostringstream expected;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && t.size(static_cast<int64_t>(i)) == shape[i];
    expected << (i == 0 ? "[" : ", ") << shape[i];
  }
  expected << ']';
  LITESEG_CHECK(same, op, argument, expected.str(), shape_text(t));
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& t, const Tensor& x) {
  LITESEG_CHECK(t.scalar_type() == x.scalar_type(), op, argument, dtype_text(x.scalar_type()),
                dtype_text(t.scalar_type()));
}

// torch's rule for the format of a result: strides that do not decrease in the order C, W, H, N
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) {
    return false;
  }
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) {
      return false;
    }
    least = t.stride(d) * t.size(d);
  }
  return true;
}

}  // namespace liteseg
