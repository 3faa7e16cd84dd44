// The address sanitizer knows where blocks of malloc end, but not what is cut from memory that is kept between calls.
// Without the sanitizer all of this is nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define LITESEG_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LITESEG_ASAN 1
#endif
#endif

#ifdef LITESEG_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace liteseg::cpu {

#ifdef LITESEG_ASAN
constexpr bool kGuarded = true;
#else
constexpr bool kGuarded = false;
#endif
// between two pieces of memory
constexpr int64_t kFenceBytes = kGuarded ? 256 : 0;

// from here on, whoever reads or writes these bytes ends the process
static inline void forbid([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#ifdef LITESEG_ASAN
  __asan_poison_memory_region(data, static_cast<size_t>(bytes));
#endif
}
static inline void allow([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#ifdef LITESEG_ASAN
  __asan_unpoison_memory_region(data, static_cast<size_t>(bytes));
#endif
}
// of `size` bytes only the first `used` are asked for now
static inline void allow_only(const char* data, int64_t used, int64_t size) {
  allow(data, used);
  forbid(data + used, size - used);
}

}  // namespace liteseg::cpu
