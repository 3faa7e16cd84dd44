// What sm_90 offers to grids that leave the device partly empty, and when it is taken. Neither has been measured on a
// GPU yet; LITESEG_EARLY_LAUNCH=0 and LITESEG_CLUSTERS=0 in the environment turn them off.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace liteseg {

inline bool switched_off(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "0") == 0;
}

// Whether a grid begins while the kernel in front of it ends: one of at most one block a multiprocessor does, for there
// starting up is a large part of the time.
template <typename Scope, typename Grid>
bool begins_early(const Scope& scope, const Grid& grid) {
  return int64_t{grid.x} * grid.y * grid.z <= scope.multiprocessors() && scope.sm_90() &&
         !switched_off("LITESEG_EARLY_LAUNCH");
}

// The most blocks of a cluster that may share a sum: a power of two that every device with clusters offers.
template <typename Scope>
int most_splits(const Scope& scope) {
  constexpr int kMostPortable = 8;
  return scope.sm_90() && !switched_off("LITESEG_CLUSTERS") ? kMostPortable : 1;
}

}  // namespace liteseg
