// Which instruction set the kernels run on: looked up once from cpuid (and the operating system's saved state), or
// forced by LITESEG_CPU_ISA=scalar|avx2|avx512|avx512bf16. The last one adds products of bfloat16 to AVX-512: kernels
// of other types run their AVX-512 code there.
#pragma once

namespace liteseg::cpu {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

Isa isa();
const char* isa_name(Isa isa);

// each kernel has one table of functions per instruction set
template <typename Table>
const Table& choose(const Table& scalar, const Table& avx2, const Table& avx512) {
  switch (isa()) {
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return scalar;
  }
}

}  // namespace liteseg::cpu

#if defined(__x86_64__)
#define LITESEG_CHOOSE(table) \
  ::liteseg::cpu::choose(::liteseg::scalar::table, ::liteseg::avx2::table, ::liteseg::avx512::table)
#else
#define LITESEG_CHOOSE(table) (::liteseg::scalar::table)
#endif
