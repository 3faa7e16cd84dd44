// Argument checks for the C++ side. Python refuses bad input first, with ValueError or TypeError; these are the second
// line, for a direct call of a private op, and read the same: "<op>: <argument>: expected X, got Y".
#pragma once

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

}  // namespace liteseg
