// Argument checks for the C++ side. Python refuses bad input first, with ValueError or TypeError; these are the second
// line, for a direct call of a private op, and read the same: "<op>: <argument>: expected X, got Y".
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>

// expected and got are texts and numbers: LITESEG_CHECK(x.dim() == 4, "op", "x", "4 dimensions", x.dim())
#define LITESEG_CHECK(cond, op, argument, expected, got)                                                     \
  do {                                                                                                       \
    if (!(cond)) {                                                                                           \
      throw std::runtime_error(::liteseg::text(op, ": ", argument, ": expected ", expected, ", got ", got)); \
    }                                                                                                        \
  } while (0)

namespace liteseg {

// without streams, which would be most of a small library
template <typename Part>
void append(std::string& out, const Part& part) {
  if constexpr (std::is_same_v<Part, char>) {
    out += part;
  } else if constexpr (std::is_integral_v<Part>) {
    out += std::to_string(part);
  } else if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%g", static_cast<double>(part));
    out += digits;
  } else {
    out += part;
  }
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (append(out, parts), ...);
  return out;
}

}  // namespace liteseg
