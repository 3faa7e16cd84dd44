// What the plan hands to the pointwise kernel of the chosen instruction set.
#pragma once

#include "types.h"

namespace liteseg::cpu {

struct PointwiseArgs {
  const float* x;       // [pixels, C]
  const float* weight;  // panels of [Co, C]
  const float* bias;    // [Co], padded with zeros to whole panels
  float* out;           // [pixels, Co]
  int64_t pixels, c, co;
  int activation;
  int64_t tile;  // pixels worked on at a time
};

struct PointwiseTable {
  // tiles [begin, end)
  void (*run)(const PointwiseArgs& args, int64_t begin, int64_t end);
};

}  // namespace liteseg::cpu

namespace liteseg::scalar {
extern const cpu::PointwiseTable pointwise_table;
}
namespace liteseg::avx2 {
extern const cpu::PointwiseTable pointwise_table;
}
namespace liteseg::avx512 {
extern const cpu::PointwiseTable pointwise_table;
}
