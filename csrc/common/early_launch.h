// When a kernel of csrc/cuda begins before the one in front of it has ended.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace liteseg {

// On sm_90 and later, for grids of at most one block a multiprocessor, where starting up is a large part of the time;
// not with LITESEG_EARLY_LAUNCH=0 in the environment. Not measured on a GPU yet.
template <typename Scope, typename Grid>
bool begins_early(const Scope& scope, const Grid& grid) {
  const char* asked = std::getenv("LITESEG_EARLY_LAUNCH");
  if ((asked != nullptr && std::strcmp(asked, "0") == 0) || !scope.sm_90()) {
    return false;
  }
  return int64_t{grid.x} * grid.y * grid.z <= scope.multiprocessors();
}

}  // namespace liteseg
