// One SIMD vector of floats, for the instruction set this translation unit is compiled for.
//
// A header f32_<set>.h gives: Vec with its `width` and value `v`, kVectorRegisters, kProductRows; set1, load, load_n,
// store, store_n (of float, f16 and bf16), fma, add, sub, mul, divide, maximum, minimum, maximum_or_nan, where_greater,
// scale_by_power; Index with load_index and lookup; transpose of width x width. math.h follows from these.
#pragma once

#include "engine/simd/base.h"

#define LITESEG_QUOTED(text) #text
// clang-format off
#define LITESEG_SIMD_HEADER(set) LITESEG_QUOTED(engine/simd/f32_##set.h)
// clang-format on
#define LITESEG_SIMD_HEADER_OF(set) LITESEG_SIMD_HEADER(set)
#include LITESEG_SIMD_HEADER_OF(LITESEG_SIMD)

#include "engine/simd/math.h"
