// Memory that each thread keeps between calls: fresh pages cost more than the kernels that fill them.
#pragma once

#include <cstdint>

namespace liteseg::cpu {

// Memory for the maps of one network: at least `bytes`, aligned to a cache line; valid until the same thread asks
// again. Grows, and never shrinks, so inputs of several sizes share what the largest one needs. Freed with the thread.
char* arena(int64_t bytes);

// Memory of one thread for weights and for scratch. Slots keep what the caller prepares apart from what it needs again
// as one of the workers.
enum class Slot { kPacked, kScratch, kCount };
char* thread_buffer(Slot slot, int64_t bytes);

}  // namespace liteseg::cpu
