#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <string>

#include "common/check.h"

namespace liteseg::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512Bf16:
      return supported(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    default:
      return true;
  }
#else
  return isa == Isa::kScalar;
#endif
}

Isa detect() {
  const char* forced = std::getenv("LITESEG_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    Isa best = Isa::kScalar;
    for (const Isa isa : kAll) {
      best = supported(isa) ? isa : best;
    }
    return best;
  }
  for (const Isa isa : kAll) {
    if (std::string(forced) == isa_name(isa)) {
      LITESEG_CHECK(supported(isa), "liteseg_cpu", "LITESEG_CPU_ISA", "an instruction set of this processor", forced);
      return isa;
    }
  }
  LITESEG_CHECK(false, "liteseg_cpu", "LITESEG_CPU_ISA", "scalar, avx2, avx512 or avx512bf16", forced);
  return Isa::kScalar;
}

std::string isa_op() {
  return isa_name(isa());
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

// no tensor argument, so no device to dispatch on
STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_op));
}

}  // namespace liteseg::cpu
