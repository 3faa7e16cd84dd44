#include "engine/runtime/isa.h"

#include <cstdlib>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/check.h"

namespace liteseg::cpu {
namespace {

#define LITESEG_HAS(feature) static_cast<bool>(__builtin_cpu_supports(feature))

// each set's own function: has_avx2() and so on
#define LITESEG_DETECT(name, has, ...) \
  bool has_##name() {                  \
    return has;                        \
  }
LITESEG_FOR_EACH_ISA(LITESEG_DETECT, )

#if defined(__x86_64__)
bool has_avx512vnni() {
  return has_avx512() && LITESEG_HAS("avx512vnni");
}
bool has_avx512bf16() {
  return has_avx512vnni() && LITESEG_HAS("avx512bf16");
}

// Linux saves the tiles' registers only of processes that ask
bool tiles_granted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  return has_avx512bf16() && LITESEG_HAS("amx-tile") && LITESEG_HAS("amx-bf16") && tiles_granted();
}
#endif

struct Candidate {
  Isa isa;
  const char* name;
  bool (*supported)();
};

#define LITESEG_CANDIDATE(name, has, ...) {Isa::name, #name, has_##name},
constexpr Candidate kCandidates[] = {
    LITESEG_FOR_EACH_ISA(LITESEG_CANDIDATE, )
#if defined(__x86_64__)
        {Isa::avx512vnni, "avx512vnni", has_avx512vnni},
    {Isa::avx512bf16, "avx512bf16", has_avx512bf16},
    {Isa::amx, "amx", has_amx},
#endif
};

Isa detect() {
  const char* forced = std::getenv("LITESEG_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    Isa best = Isa::scalar;
    for (const Candidate& candidate : kCandidates) {
      best = candidate.supported() ? candidate.isa : best;
    }
    return best;
  }
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (std::string(forced) == candidate.name) {
      LITESEG_CHECK(candidate.supported(), "liteseg_cpu", "LITESEG_CPU_ISA", "an instruction set of this processor",
                    forced);
      return candidate.isa;
    }
    names += (names.empty()                             ? ""
              : &candidate + 1 == std::end(kCandidates) ? " or "
                                                        : ", ") +
             std::string(candidate.name);
  }
  LITESEG_CHECK(false, "liteseg_cpu", "LITESEG_CPU_ISA", names, forced);
  return Isa::scalar;
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name(Isa isa) {
  return kCandidates[static_cast<int>(isa)].name;
}

int table_index() {
#if defined(__x86_64__)
  return static_cast<int>(isa() > Isa::avx512 ? Isa::avx512 : isa());
#else
  return static_cast<int>(isa());
#endif
}

bool has_byte_products() {
  return isa() >= Isa::avx512vnni;
}

}  // namespace liteseg::cpu
