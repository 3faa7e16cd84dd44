// All inline PTX, and the dynamic shared memory. Included as <liteseg/ptx.cuh>: a test that runs the same kernels on
// the CPU puts a file of this name, with the same operations, earlier on the include path. sm_80 and later.
#pragma once

#include <cuda_runtime.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace liteseg {

extern __shared__ __align__(128) unsigned char dynamic_shared[];

// Hands out the block's dynamic shared memory. Every thread takes the same arrays in the same order; the host adds
// them up with `SharedMeter`.
class SharedCarver {
 public:
  template <typename T>
  __device__ T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(dynamic_shared + offset_);
    offset_ += (static_cast<int>(count * static_cast<int64_t>(sizeof(T))) + 15) / 16 * 16;
    return array;
  }

 private:
  int offset_ = 0;
};

// Waits until the kernel in front of this one in the stream has ended and all that it wrote can be seen; returns at
// once where the launch did not let this kernel begin earlier (`launch_early`). Before it, nothing of global memory may
// be read or written, weights included: the kernel in front may just be copying them. Every thread calls it.
__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// lets the next kernel begin, up to its own wait, once all blocks of this one have called it or ended
__device__ inline void release_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}

// Brings a line of global memory into L2. No value is read, so that it may stand before wait_for_predecessor.
__device__ inline void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(address));
}

// the barrier of all threads of a cluster, for shared memory too
__device__ inline void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
#endif
}

// Nobody leaves before all threads of the cluster are here. Unlike sync_cluster it publishes nothing: what was read
// before has arrived, for it has been used.
__device__ inline void leave_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;\n" ::: "memory");
#endif
}

// the same array in the shared memory of another block of the cluster
template <typename T>
__device__ inline T* shared_of(int rank, T* address) {
#if __CUDA_ARCH__ >= 900
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;\n" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(address)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return address;
#endif
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes of global memory, or zeros, into shared memory; both addresses are multiples of 16
__device__ inline void cp_async16(void* to, const void* from, bool read) {
  const int bytes = read ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}

__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// z within [low, high]; a NaN stays one
__device__ inline float clamp(float z, float low, float high) {
  float above, between;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(above) : "f"(z), "f"(low));
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(between) : "f"(above), "f"(high));
  return between;
}

// two values rounded to the type of the last argument, the first at the lower address
__device__ inline uint32_t round_pair(float first, float second, c10::Half) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

__device__ inline uint32_t round_pair(float first, float second, c10::BFloat16) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// waits for this thread's copies, but for those of the last groups
template <int kGroupsLeft>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}

// four 8 x 16-byte matrices: lane l gives the address of row l % 8 of matrix l / 8, and receives 4 bytes of row l / 4
__device__ inline void ldmatrix(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}

// D[16 x 8] += A[16 x 16] * B[16 x 8]; the last argument names the operands' type
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, c10::Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, c10::BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// the nearest tf32 of a float
__device__ inline uint32_t to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// D[16 x 8] += A[16 x 8] * B[8 x 8] in tf32
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace liteseg
