// The vectors of bytes of one instruction set (engine/simd/bytes.h) against single numbers: every one of their
// functions on random bytes and on the ends of their ranges. Prints what differs, and how much did.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "engine/blocks/depthwise_int8.h"

namespace set = liteseg::LITESEG_ISA;

namespace {

constexpr int64_t kWidth = set::Vec::width;
constexpr int64_t kBytes = set::kBytes;
int64_t compared = 0;
int64_t differences = 0;

void check(const char* what, int64_t place, int64_t got, int64_t expected) {
  ++compared;
  if (got != expected && ++differences < 20) {
    std::printf("%s, place %lld: expected %lld, got %lld\n", what, static_cast<long long>(place),
                static_cast<long long>(expected), static_cast<long long>(got));
  }
}

uint32_t state = 1;
uint32_t draw() {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}
uint8_t any_byte() {
  const uint32_t x = draw();
  return static_cast<uint8_t>(x % 5 == 0 ? 255 : x % 7 == 0 ? 0 : x >> 3);
}
int8_t any_weight() {
  const uint32_t x = draw();
  return static_cast<int8_t>(x % 5 == 0 ? 127 : x % 7 == 0 ? -127 : static_cast<int>((x >> 3) % 255) - 127);
}

struct Numbers {
  int32_t v[kWidth];
};
Numbers numbers(set::Ints a) {
  Numbers out;
  set::store_ints(out.v, a);
  return out;
}

void dots() {
  uint8_t a[kBytes];
  int8_t b[kBytes];
  int32_t start[kWidth];
  for (int64_t i = 0; i < kBytes; ++i) {
    a[i] = any_byte();
    b[i] = any_weight();
  }
  for (int64_t i = 0; i < kWidth; ++i) {
    start[i] = static_cast<int32_t>(draw()) - (1 << 23);
  }
  const Numbers each = numbers(set::dot(set::load_ints(start), set::left_of(set::load_bytes(a)), set::load_right(b)));
  const Numbers one = numbers(set::dot(set::load_ints(start), set::left_of(set::word_at(a + 4)), set::load_right(b)));
  for (int64_t i = 0; i < kWidth; ++i) {
    int64_t sum = start[i];
    int64_t sum_of_one = start[i];
    for (int64_t j = 0; j < 4; ++j) {
      sum += a[4 * i + j] * b[4 * i + j];
      sum_of_one += a[4 + j] * b[4 * i + j];
    }
    check("dot of bytes", i, each.v[i], sum);
    check("dot of a word", i, one.v[i], sum_of_one);
  }
}

void packs() {
  int32_t values[4][kWidth];
  for (auto& part : values) {
    for (int32_t& value : part) {
      value = static_cast<int32_t>(draw() % 700) - 200;
      value = draw() % 11 == 0 ? (draw() % 2 == 0 ? INT32_MIN : INT32_MAX) : value;
    }
  }
  const set::Bytes packed = set::pack(set::load_ints(values[0]), set::load_ints(values[1]), set::load_ints(values[2]),
                                      set::load_ints(values[3]));
  uint8_t ordered[kBytes];
  uint8_t halves[kBytes];
  set::store_bytes(ordered, set::in_order(packed));
  set::store_half(halves, set::in_order(packed), 0);
  set::store_half(halves + kBytes / 2, set::in_order(packed), 1);
  for (int64_t i = 0; i < kBytes; ++i) {
    const int32_t value = values[i / kWidth][i % kWidth];
    const int64_t expected = value < 0 ? 0 : value > 255 ? 255 : value;
    check("pack", i, ordered[i], expected);
    check("halves", i, halves[i], expected);
  }
}

void columns() {
  uint8_t rows[3][kBytes];
  for (auto& row : rows) {
    for (uint8_t& value : row) {
      value = any_byte();
    }
  }
  set::Bytes words[4];
  set::columns(set::load_bytes(rows[0]), set::load_bytes(rows[1]), set::load_bytes(rows[2]), words);
  // what pack makes of sums that single each row out is that row
  for (int64_t row = 0; row < 4; ++row) {
    int8_t unit[kBytes] = {};
    for (int64_t i = row; i < kBytes; i += 4) {
      unit[i] = 1;
    }
    set::Ints sums[4];
    for (int64_t v = 0; v < 4; ++v) {
      sums[v] = set::dot(set::set1_int(0), set::left_of(words[v]), set::load_right(unit));
    }
    uint8_t out[kBytes];
    set::store_bytes(out, set::pack(sums[0], sums[1], sums[2], sums[3]));
    for (int64_t i = 0; i < kBytes; ++i) {
      check("columns", i, out[i], row < 3 ? rows[row][i] : 0);
    }
  }
}

void roundings() {
  float values[kWidth];
  float factors[kWidth];
  float sums[kWidth];
  uint8_t bytes[16];
  for (int64_t i = 0; i < kWidth; ++i) {
    // every other one is a tie
    values[i] = static_cast<float>(static_cast<int32_t>(draw() % 4001) - 2000) / (draw() % 2 == 0 ? 2.0f : 7.0f);
    // 16 significant bits, so that its product with a byte is exact
    factors[i] = static_cast<float>(draw() % 65536) * 0x1p-14f;
    sums[i] = values[i] * 0.1f;
    bytes[i % 16] = any_byte();
  }
  const Numbers rounded = numbers(set::to_ints(set::load(values)));
  const set::Ints wide = set::widen_bytes(bytes);
  const Numbers added = numbers(set::to_ints(
      set::add_product(set::mul(set::load(values), set::set1(0.1f)), set::to_floats(wide), set::load(factors))));
  const Numbers shifted = numbers(set::add(wide, set::set1_int(-128)));
  for (int64_t i = 0; i < kWidth; ++i) {
    check("to_ints", i, rounded.v[i], std::lrintf(values[i]));
    check("widen_bytes", i, shifted.v[i], bytes[i] - 128);
    const float product = static_cast<float>(bytes[i]) * factors[i];
    check("add_product", i, added.v[i], std::lrintf(sums[i] + product));
  }
}

}  // namespace

int main() {
  for (int round = 0; round < 2000; ++round) {
    dots();
    packs();
    columns();
    roundings();
  }
  std::printf("%lld compared, %lld differences\n", static_cast<long long>(compared),
              static_cast<long long>(differences));
  return differences == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
