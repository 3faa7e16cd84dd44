// Stands in for csrc/cuda/liteseg/ptx.cuh: the same operations with the values that the hardware gives.
#pragma once

#include <cuda_runtime.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

namespace liteseg {

class SharedCarver {
 public:
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(emulator::take_shared(offset_, taken_, count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  int64_t offset_ = 0, taken_ = 0;
};

inline void wait_for_predecessor() {
  emulator::wait_for_predecessor();
}

// when the next kernel begins changes no value here
inline void release_successor() {}

inline void prefetch_l2(const void*) {}

inline void sync_cluster() {
  emulator::sync_cluster();
}

inline void leave_cluster() {
  emulator::sync_cluster();
}

template <typename T>
T* shared_of(int rank, T* address) {
  return static_cast<T*>(emulator::shared_of(rank, address));
}

inline void cp_async16(void* to, const void* from, bool read) {
  emulator::copy_later(to, read ? from : nullptr, 16);
}

inline void cp_async_commit() {
  emulator::commit_copies();
}

inline float clamp(float z, float low, float high) {
  return z < low ? low : z > high ? high : z;
}

template <typename T>
uint32_t round_pair(float first, float second, T) {
  const T values[2] = {T(first), T(second)};
  uint32_t pair;
  std::memcpy(&pair, values, sizeof(pair));
  return pair;
}

template <int kGroupsLeft>
void cp_async_wait() {
  emulator::wait_copies(kGroupsLeft);
}

// lane l gives the address of row l % 8 of matrix l / 8, and receives 4 bytes of row l / 4 of each matrix
inline void ldmatrix(uint32_t (&registers)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0 || !emulator::is_shared(row, 16)) {
    emulator::fail("ldmatrix: a row that is not 16 aligned bytes of a shared array");
  }
  const auto rows = emulator::exchange(row);
  emulator::counters.matrix_loads += emulator::lane() == 0;
  const int lane = emulator::lane();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto* bytes = static_cast<const unsigned char*>(rows[matrix * 8 + lane / 4]);
    std::memcpy(&registers[matrix], bytes + lane % 4 * 4, 4);
  }
}

namespace emulator {

// a lane's operands as numbers; of one register two halves, or one float
struct Operands {
  float a[8], b[4];
};

// D[16 x 8] += A[16 x K] * B[K x 8] in the register layout of mma.sync: a register holds kPair values along k
template <int kPair>
void multiply(float (&d)[4], const Operands& mine) {
  constexpr int kHalf = 4 * kPair;
  const Slot* slots = exchange(mine).slots;
  const int me = lane();
  counters.matrix_products += me == 0;
  for (int i = 0; i < 4; ++i) {
    const int row = me / 4 + 8 * (i / 2), column = me % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int owner = k % kHalf / kPair;
      const auto* left = reinterpret_cast<const Operands*>(slots[row % 8 * 4 + owner].bytes);
      const auto* right = reinterpret_cast<const Operands*>(slots[column * 4 + owner].bytes);
      sum += left->a[(row / 8 + k / kHalf * 2) * kPair + k % kPair] * right->b[k / kHalf * kPair + k % kPair];
    }
    d[i] += sum;
  }
}

template <typename T>
void multiply_halves(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto value = [](uint32_t pair, int index) {
    return static_cast<float>(T(static_cast<unsigned short>(pair >> (16 * index)), T::from_bits()));
  };
  Operands mine;
  for (int i = 0; i < 8; ++i) {
    mine.a[i] = value(a[i / 2], i % 2);
  }
  for (int i = 0; i < 4; ++i) {
    mine.b[i] = value(i < 2 ? b0 : b1, i % 2);
  }
  multiply<2>(d, mine);
}

}  // namespace emulator

inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, c10::Half) {
  emulator::multiply_halves<c10::Half>(d, a, b0, b1);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, c10::BFloat16) {
  emulator::multiply_halves<c10::BFloat16>(d, a, b0, b1);
}

inline uint32_t to_tf32(uint32_t bits) {
  // to nearest, ties away from zero; infinities and NaN stay
  return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & ~0x1FFFu;
}

// float: tf32 products of depth 8, the low bits of the operands ignored
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  const auto value = [](uint32_t bits) {
    bits &= ~0x1FFFu;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  };
  emulator::multiply<1>(d, {{value(a[0]), value(a[1]), value(a[2]), value(a[3])}, {value(b0), value(b1)}});
}

}  // namespace liteseg
