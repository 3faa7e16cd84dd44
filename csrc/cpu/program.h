// Reading a flat program of layers with its packed weights, and the memory that the maps between the layers share.
#pragma once

#include <cstring>
#include <limits>

#include "cpu/guard.h"
#include "cpu/tensors.h"

namespace liteseg::cpu {

constexpr int64_t kFence = kFenceBytes / static_cast<int64_t>(sizeof(float));

class Program {
 public:
  Program(const char* op, const Tensor& program, const Tensor& packed)
      : op_(op),
        words_(static_cast<const int64_t*>(read_of(program))),
        size_(program.numel()),
        weights_(static_cast<const float*>(read_of(packed))),
        floats_(packed.numel()) {}

  int64_t word() {
    LITESEG_CHECK(at_ < size_, op_, "program", "a whole program", text("one that ends at word ", at_));
    return words_[at_++];
  }
  int64_t word(const char* what, int64_t least, int64_t most) {
    const int64_t value = word();
    LITESEG_CHECK(value >= least && value <= most, op_, "program", text(what, " in ", least, "..", most), value);
    return value;
  }
  int64_t channels() {
    return word("a number of channels", 1, int64_t{1} << 20);
  }
  int activation() {
    return static_cast<int>(word("an activation", kNone, kRelu6));
  }
  // an activation, and the slope of a leaky one as the bits of a float
  int activation(float* slope) {
    return activation(slope, kLeakyRelu);
  }
  int activation(float* slope, Activation last) {
    const int value = static_cast<int>(word("an activation", kNone, last));
    const auto bits = static_cast<uint32_t>(word("the bits of a float", 0, std::numeric_limits<uint32_t>::max()));
    static_assert(sizeof(bits) == sizeof(*slope));
    std::memcpy(slope, &bits, sizeof(bits));
    return value;
  }
  bool flag() {
    return word("a flag", 0, 1) != 0;
  }
  // offset of a packed weight of `count` floats
  const float* weight(int64_t count) {
    const int64_t offset = word("an offset", 0, floats_);
    LITESEG_CHECK(count <= floats_ - offset, op_, "packed", text("at least ", offset + count, " floats"), floats_);
    return weights_ + offset;
  }
  bool done() const {
    return at_ == size_;
  }

 private:
  const char* op_;
  const int64_t* words_;
  int64_t size_;
  const float* weights_;
  int64_t floats_;
  int64_t at_ = 0;
};

inline int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return div_up(a, b) * b;
}

// Pixels worked on at a time, near `tile`, so that every thread gets the same number of tiles where there are few of
// them. Results do not depend on it.
inline int64_t balanced_tile(int64_t tile, int64_t images, int64_t plane) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  constexpr int64_t step = 12;  // rows of a block of the widest product
  int64_t best = tile;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t t = tile * 3 / 2; t >= tile / 2 && t >= step; t -= step) {
    const int64_t cost = div_up(images * div_up(plane, t), threads) * t;
    if (cost < least) {
      least = cost;
      best = t;
    }
  }
  return best;
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
