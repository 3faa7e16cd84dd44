// The instruction sets that every kernel is compiled for, and the declaration of a kernel's tables. Macros only: files
// compiled for one of the sets include this.
#pragma once

// X(name, whether this processor has it, ...) for each set, a later one being preferred. `name` is the namespace of the
// set's kernels, its row in setup.py's INSTRUCTION_SETS and a value of LITESEG_CPU_ISA.
#if defined(__x86_64__)
#define LITESEG_FOR_EACH_ISA(X, ...)                                                              \
  X(scalar, true, __VA_ARGS__)                                                                    \
  X(avx2, LITESEG_HAS("avx2") && LITESEG_HAS("fma") && LITESEG_HAS("f16c"), __VA_ARGS__)          \
  X(avx512,                                                                                       \
    has_avx2() && LITESEG_HAS("avx512f") && LITESEG_HAS("avx512bw") && LITESEG_HAS("avx512vl") && \
        LITESEG_HAS("avx512dq"),                                                                  \
    __VA_ARGS__)
#elif defined(__aarch64__)
#define LITESEG_FOR_EACH_ISA(X, ...) \
  X(scalar, true, __VA_ARGS__)       \
  X(neon, true, __VA_ARGS__)
#else
#define LITESEG_FOR_EACH_ISA(X, ...) X(scalar, true, __VA_ARGS__)
#endif

#define LITESEG_DECLARE_TABLE(name, has, Type, table) \
  namespace liteseg::name {                           \
  extern const cpu::Type table;                       \
  }

// The functions of a kernel for each set: `const cpu::<Type> <table>` in the set's namespace, which the kernel's source
// defines. LITESEG_CHOOSE(<table>) of isa.h is the one of the set in use.
#define LITESEG_TABLE(Type, table) LITESEG_FOR_EACH_ISA(LITESEG_DECLARE_TABLE, Type, table)
