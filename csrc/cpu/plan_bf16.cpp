#include "cpu/plan_bf16.h"

#include "cpu/isa.h"

namespace liteseg::cpu {

const Bf16Tables* bf16_tables() {
#if defined(__x86_64__)
  static constexpr Bf16Tables tables = {&avx512bf16::stem_bf16_table, &avx512bf16::inverted_residual_bf16_table,
                                        &avx512bf16::pyramid_bf16_table, &avx512bf16::decoder_bf16_table};
  return isa() == Isa::kAvx512Bf16 ? &tables : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace liteseg::cpu
