// The memory that the maps between the layers of a network share.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "common/check.h"
#include "engine/geometry.h"
#include "engine/runtime/guard.h"

namespace liteseg::cpu {

constexpr int64_t kFence = kFenceBytes / static_cast<int64_t>(sizeof(float));

// more memory is wanted than the caller allows
struct MemoryLimit : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// limit: in bytes, 0 for none
inline void check_memory(const char* op, int64_t bytes, int64_t limit) {
  if (limit > 0 && bytes > limit) {
    throw MemoryLimit(text(op, ": memory: expected at most ", limit, " bytes, got ", bytes));
  }
}

// memory that one layer, or all from `first` to a value's last use, keeps
struct Block {
  int64_t floats, first, last;
  int64_t* offset;
};

// Offsets of all blocks: each takes the lowest gap between those that live at the same time, and grows to whole cache
// lines. Returns the floats needed. Where the sanitizer looks on, no two blocks share memory, and each ends at a fence.
inline int64_t place_blocks(std::vector<Block>& blocks) {
  int64_t total = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    Block& block = blocks[i];
    // 64 bytes, and room for a whole vector that starts at the last float
    block.floats = round_up(block.floats, 16) + 16 + kFence;
    int64_t offset = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t j = 0; j < i; ++j) {
        const Block& other = blocks[j];
        const bool alive = kGuarded || (block.first <= other.last && other.first <= block.last);
        if (alive && offset < *other.offset + other.floats && *other.offset < offset + block.floats) {
          offset = *other.offset + other.floats;
          moved = true;
        }
      }
    }
    *block.offset = offset;
    total = std::max(total, offset + block.floats);
  }
  return total;
}

}  // namespace liteseg::cpu
