// Packing of pointwise weights for the products of gemm.h.
#pragma once

#include "engine/runtime/isa_list.h"
#include "engine/types.h"

namespace liteseg::cpu {

struct PackTable {
  int64_t panel;  // columns of a packed panel
  // weight [N, K] at any strides -> panels; one function per dtype
  void (*pack[kNumDTypes])(const void* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t k, float* panels);
};

}  // namespace liteseg::cpu

LITESEG_TABLE(PackTable, pack_table)
