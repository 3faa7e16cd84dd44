// The part of CUDA that the kernels of csrc/cuda use, on the CPU, for tests: one thread after another, one block after
// another. Kernels whose threads wait for each other (barriers, warp operations) do not compile against it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#define __global__
#define __device__

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;

using std::max;
using std::min;

namespace liteseg::emulator {

inline thread_local dim3 thread_index, block_index, block_size, grid_size;

}  // namespace liteseg::emulator

#define threadIdx ::liteseg::emulator::thread_index
#define blockIdx ::liteseg::emulator::block_index
#define blockDim ::liteseg::emulator::block_size
#define gridDim ::liteseg::emulator::grid_size
