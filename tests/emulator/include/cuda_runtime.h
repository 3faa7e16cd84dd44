// The part of CUDA that the kernels of csrc/cuda use, on the CPU, for tests: the threads of a block are fibers of the
// calling thread, one block runs after another.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// one block runs at a time, so one copy will do; it cannot be poisoned, so the kernels carve dynamic memory instead
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;

using std::max;
using std::min;

#include "liteseg/emulator.h"

#define threadIdx ::liteseg::emulator::thread_index
#define blockIdx ::liteseg::emulator::block_index
#define blockDim ::liteseg::emulator::block_size
#define gridDim ::liteseg::emulator::grid_size

inline void __syncthreads() {
  ::liteseg::emulator::sync_block();
}

inline void __syncwarp() {
  ::liteseg::emulator::sync_warp();
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ::liteseg::emulator::exchange(value)[::liteseg::emulator::lane() ^ mask];
}

template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int lane = ::liteseg::emulator::lane();
  return ::liteseg::emulator::exchange(value)[lane + delta < 32 ? lane + delta : lane];
}

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return ::liteseg::emulator::exchange(value)[source & 31];
}
