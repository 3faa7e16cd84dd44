// Small kernels for tests of the emulator itself: each right, and with one mistake planted (`wrong`).
#include <liteseg/launch.cuh>
#include <liteseg/tile.cuh>

#include <algorithm>
#include <cstring>
#include <string>

namespace liteseg {
namespace {

constexpr int kThreads = 64;
constexpr int kClusterBlocks = 4;

// each thread reads what another has written, twice, with a barrier around each exchange
__global__ void barrier_kernel(float* out, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = static_cast<float>(thread);
  __syncthreads();
  const float first = values[(thread + 33) % kThreads];
  if (wrong == 0) {
    __syncthreads();
  }
  values[thread] = first + 100.0f;
  __syncthreads();
  out[thread] = values[(thread + 33) % kThreads];
}

__global__ void divergent_kernel(float* out, int wrong) {
  const int thread = static_cast<int>(threadIdx.x);
  if (wrong != 0 && thread >= 33) {
    return;
  }
  __syncthreads();
  out[thread] = 1.0f;
}

// one lane leaves its warp's shuffle out
__global__ void divergent_warp_kernel(float* out, int wrong) {
  const int thread = static_cast<int>(threadIdx.x);
  float value = static_cast<float>(thread);
  if (wrong == 0 || thread != 5) {
    value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  }
  __syncthreads();
  out[thread] = value;
}

__global__ void uninitialised_kernel(float* out, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  if (wrong == 0 || thread != 7) {
    values[thread] = 1.0f;
  }
  __syncthreads();
  out[thread] = values[thread];
}

__global__ void copy_kernel(float* out, const float* in, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(4 * kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  cp_async16(values + 4 * thread, in + 4 * thread, thread % 2 == 0);
  cp_async_commit();
  if (wrong == 0) {
    cp_async_wait<0>();
  } else {
    cp_async_wait<1>();
  }
  __syncthreads();
  out[thread] = values[4 * thread + 1];
}

__global__ void shared_write_kernel(float* out, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  values[thread + (wrong != 0 ? 4 : 0)] = 1.0f;
  __syncthreads();
  out[thread] = 1.0f;
}

__global__ void global_read_kernel(float* out, const float* in, int wrong) {
  const int thread = static_cast<int>(threadIdx.x);
  out[thread] = in[4 * thread + 3 + (wrong != 0 ? 1 : 0)];
}

__global__ void too_much_shared_kernel(float* out, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(kThreads + (wrong != 0 ? 4 : 0));
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = 1.0f;
  out[thread] = values[thread];
}

__global__ void misaligned_kernel(float* out, const float* in, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(4 * kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  cp_async16(values + 4 * thread, in + (wrong != 0 && thread > 0 ? 4 * thread - 1 : 4 * thread), true);
  cp_async_commit();
  cp_async_wait<0>();
  out[thread] = values[4 * thread];
}

// each block of a cluster reads what the next one has written; `wrong`: without waiting for it
__global__ void cluster_kernel(float* out, int wrong) {
  SharedCarver carver;
  float* values = carver.take<float>(kThreads);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.z);
  values[thread] = static_cast<float>(100 * block + thread);
  if (wrong == 0) {
    sync_cluster();
  }
  const float found = shared_of((block + 1) % kClusterBlocks, values)[thread];
  sync_cluster();
  if (block == kClusterBlocks - 1 || wrong != 0) {
    out[thread] = wrong != 0 ? out[thread] + found : found;
  }
}

// one block leaves the cluster's barrier out
__global__ void divergent_cluster_kernel(float* out, int wrong) {
  if (wrong == 0 || blockIdx.z != 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

// `wrong`: 1 reads before it waits, 2 never waits
__global__ void early_kernel(float* out, const float* in, int wrong) {
  const int thread = static_cast<int>(threadIdx.x);
  float value = wrong == 1 ? in[thread] : 0.0f;
  if (wrong != 2) {
    wait_for_predecessor();
    release_successor();
  }
  value = wrong == 1 ? value : in[thread];
  out[thread] = value;
}

// the product of one warp: a [16][chunk], b [16][chunk] -> out [16][16]
template <typename M>
__global__ void product_kernel(float* out, const float* a, const float* b) {
  using T = typename M::Element;
  using S = Shape<T>;
  SharedCarver carver;
  T* left = carver.take<T>(16 * S::kPitch);
  T* right = carver.take<T>(16 * S::kPitch);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * S::kChunk; i += 32) {
    left[i / S::kChunk * S::kPitch + i % S::kChunk] = T(a[i]);
    right[i / S::kChunk * S::kPitch + i % S::kChunk] = T(b[i]);
  }
  __syncthreads();
  float acc[2][4];
  clear(acc);
  multiply<M>(acc, left, right, lane);
  for_each(acc, lane, [&](int row, int column, float value) { out[row * 16 + column] = value; });
}

void run_kernel(const std::string& name, int wrong, float* out, const float* in, const float* in2) {
  const dim3 one(1), threads(kThreads), warp(32);
  const int64_t quad = 4 * kThreads * sizeof(float), single = kThreads * sizeof(float), product = 2 * 16 * 80;
  if (name == "barrier") {
    launch(barrier_kernel, one, threads, single, nullptr, out, wrong);
  } else if (name == "divergent") {
    launch(divergent_kernel, one, threads, 0, nullptr, out, wrong);
  } else if (name == "divergent_warp") {
    launch(divergent_warp_kernel, one, threads, 0, nullptr, out, wrong);
  } else if (name == "uninitialised") {
    launch(uninitialised_kernel, one, threads, single, nullptr, out, wrong);
  } else if (name == "copy") {
    launch(copy_kernel, one, threads, quad, nullptr, out, in, wrong);
  } else if (name == "shared_write") {
    launch(shared_write_kernel, one, threads, single, nullptr, out, wrong);
  } else if (name == "global_read") {
    launch(global_read_kernel, one, threads, 0, nullptr, out, in, wrong);
  } else if (name == "too_much_shared") {
    launch(too_much_shared_kernel, one, threads, single, nullptr, out, wrong);
  } else if (name == "misaligned") {
    launch(misaligned_kernel, one, threads, quad, nullptr, out, in, wrong);
  } else if (name == "cluster") {
    emulator::run(dim3(1, 1, kClusterBlocks), threads, single, kClusterBlocks, false,
                  [&] { cluster_kernel(out, wrong); });
  } else if (name == "divergent_cluster") {
    emulator::run(dim3(1, 1, kClusterBlocks), threads, 0, kClusterBlocks, false,
                  [&] { divergent_cluster_kernel(out, wrong); });
  } else if (name == "early") {
    emulator::run(dim3(3), threads, 0, 1, true, [&] { early_kernel(out, in, wrong); });
  } else if (name == "float16") {
    launch(product_kernel<Fp16>, one, warp, product, nullptr, out, in, in2);
  } else if (name == "bfloat16") {
    launch(product_kernel<Bf16>, one, warp, product, nullptr, out, in, in2);
  } else if (name == "tf32") {
    launch(product_kernel<Tf32>, one, warp, product, nullptr, out, in, in2);
  } else if (name == "float32") {
    launch(product_kernel<Fp32>, one, warp, product, nullptr, out, in, in2);
  } else {
    emulator::fail("no kernel " + name);
  }
}

}  // namespace
}  // namespace liteseg

// runs a kernel on arrays of numpy; the text of its error, empty where there was none
extern "C" __attribute__((visibility("default"))) void run_kernel(const char* name, int wrong, float* out,
                                                                  const float* in, const float* in2, char* message,
                                                                  int room) {
  std::string text;
  try {
    liteseg::run_kernel(name, wrong, out, in, in2);
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::strncpy(message, text.c_str(), static_cast<size_t>(room) - 1);
  message[room - 1] = 0;
}
