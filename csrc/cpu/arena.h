// Memory for the maps of one network, kept by each thread that calls: fresh pages cost more than half of a network.
#pragma once

#include <cstdint>

namespace liteseg::cpu {

// at least `bytes`, aligned to a cache line; valid until the same thread asks again. Grows, and never shrinks, so
// inputs of several sizes share what the largest one needs. Freed with the thread.
char* arena(int64_t bytes);

}  // namespace liteseg::cpu
