// Argument checks for the C++ side. Python refuses bad input first, with ValueError or TypeError; these are the second
// line, for a direct call of a private op, and read the same: "<op>: <argument>: expected X, got Y".
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

// expected and got are anything a stream can print: LITESEG_CHECK(x.dim() == 4, "op", "x", "4 dimensions", x.dim())
#define LITESEG_CHECK(cond, op, argument, expected, got)                                                     \
  do {                                                                                                       \
    if (!(cond)) {                                                                                           \
      throw std::runtime_error(::liteseg::text(op, ": ", argument, ": expected ", expected, ", got ", got)); \
    }                                                                                                        \
  } while (0)

namespace liteseg {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

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

}  // namespace liteseg
