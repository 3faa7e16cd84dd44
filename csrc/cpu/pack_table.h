// Packing of pointwise weights for the products of gemm.h.
#pragma once

#include "types.h"

namespace liteseg::cpu {

struct PackTable {
  int64_t panel;  // columns of a packed panel
  // weight [N, K] at any strides -> panels; one function per dtype
  void (*pack[kNumDTypes])(const void* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t k, float* panels);
};

}  // namespace liteseg::cpu

namespace liteseg::scalar {
extern const cpu::PackTable pack_table;
}
namespace liteseg::avx2 {
extern const cpu::PackTable pack_table;
}
namespace liteseg::avx512 {
extern const cpu::PackTable pack_table;
}
