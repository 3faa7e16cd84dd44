// Plain types shared by the baseline translation units and the ones compiled with wider instruction sets.
// Nothing here may contain an inline function: the linker would keep one copy for all instruction sets.
#pragma once

#include <cstdint>

namespace liteseg::cpu {

// storage-only half types; arithmetic widens to float
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

enum DType : int { kFloat = 0, kHalf = 1, kBFloat16 = 2, kNumDTypes = 3 };
enum Activation : int {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kLeakyRelu = 3,
  // what ops and the stores of kernels know ends here
  kLastOfOps = kLeakyRelu,
  // the rest is applied to finished rows (smooth.h): `activate` does not know them, and no registered op takes them
  kHardswish = 4,
  kSilu = 5,
  kHardsigmoid = 6,
  kSigmoid = 7,
};

// floats of the widest vector of any instruction set, a multiple of all others: 64 bytes
constexpr int64_t kWidestVector = 16;

// strides of a [N, C, H, W] tensor, in elements
struct Strides4 {
  int64_t n, c, h, w;
};

// for each output position of one axis: value = w0 * in[i0] + w1 * in[i1]
struct AxisView {
  const int32_t* i0;
  const int32_t* i1;
  const float* w0;
  const float* w1;
};

// the other way round: input position i is read by the outputs [begin[i], end[i])
struct GatherView {
  const int64_t* begin;
  const int64_t* end;
};

}  // namespace liteseg::cpu
