// Reading a flat program of layers with its packed weights.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "common/check.h"
#include "engine/types.h"

namespace liteseg::cpu {

class Program {
 public:
  // words [size] and weights [floats] outlive the reader
  Program(const char* op, const int64_t* words, int64_t size, const float* weights, int64_t floats)
      : op_(op), words_(words), size_(size), weights_(weights), floats_(floats) {}

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
    return activation(slope, kLastOfOps);
  }
  // smooth ones too
  int any_activation(float* slope) {
    return activation(slope, kSigmoid);
  }
  // the bits of one
  float number() {
    const auto bits = static_cast<uint32_t>(word("the bits of a float", 0, std::numeric_limits<uint32_t>::max()));
    float value;
    static_assert(sizeof(bits) == sizeof(value));
    std::memcpy(&value, &bits, sizeof(bits));
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
  int activation(float* slope, Activation last) {
    const int value = static_cast<int>(word("an activation", kNone, last));
    *slope = number();
    return value;
  }

  const char* op_;
  const int64_t* words_;
  int64_t size_;
  const float* weights_;
  int64_t floats_;
  int64_t at_ = 0;
};

}  // namespace liteseg::cpu
