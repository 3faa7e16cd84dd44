// Which instruction set the kernels run on: looked up once from cpuid (and the operating system's saved state), or
// forced by LITESEG_CPU_ISA=scalar|avx2|avx512|avx512vnni|avx512bf16|amx. The last three add products of bytes, and the
// last two of bfloat16, to AVX-512: kernels of other types run their AVX-512 code there.
#pragma once

#include <initializer_list>

#include "engine/runtime/isa_list.h"

namespace liteseg::cpu {

#define LITESEG_ENUMERATOR(name, ...) name,
enum class Isa : int { LITESEG_FOR_EACH_ISA(LITESEG_ENUMERATOR, ) avx512vnni, avx512bf16, amx };
#undef LITESEG_ENUMERATOR

Isa isa();
const char* isa_name(Isa isa);
// place of the set in use among those that every kernel is compiled for
int table_index();
// whether kernels of bytes run their code for AVX512_VNNI
bool has_byte_products();

template <typename Table>
const Table& choose(std::initializer_list<const Table*> tables) {
  return *tables.begin()[table_index()];
}

}  // namespace liteseg::cpu

#define LITESEG_ADDRESS(name, has, table) &::liteseg::name::table,
#define LITESEG_CHOOSE(table) (::liteseg::cpu::choose({LITESEG_FOR_EACH_ISA(LITESEG_ADDRESS, table)}))
