// Bilinear sampling positions, computed once per call with torch's own fp32 rules.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/types.h"

namespace liteseg::cpu {

// the arrays behind an AxisView, padded by repeating the last position so that vectors can be loaded past the end
struct Axis {
  static constexpr int64_t padding = 32;
  std::vector<int32_t> i0, i1;
  std::vector<float> w0, w1;

  Axis(int64_t in, int64_t out, bool align_corners);
  AxisView view() const {
    return {i0.data(), i1.data(), w0.data(), w1.data()};
  }
};

// the arrays behind a GatherView
struct Gather {
  std::vector<int64_t> begin, end;

  Gather(const Axis& axis, int64_t in, int64_t out);
  GatherView view() const {
    return {begin.data(), end.data()};
  }
  // most outputs that read one input
  int64_t longest() const;
};

}  // namespace liteseg::cpu
