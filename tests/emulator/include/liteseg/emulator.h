// What stands behind the emulated CUDA headers: fibers, barriers, exchanges inside a warp, shared memory, counters.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct dim3;

namespace liteseg::emulator {

extern dim3 thread_index, block_index, block_size, grid_size;

// the order in which the threads of a block take their turns, and the blocks of a grid
enum class Schedule { kUp, kDown, kRandom };

struct Counters {
  int64_t launches, early_launches, blocks, clusters, switches, barriers, warp_operations, matrix_products,
      matrix_loads, shared_copies;
};

struct Controls {
  Schedule schedule = Schedule::kUp;
  uint64_t seed = 0;
  bool poison = true;
  int64_t max_shared = 163 * 1024;
  int multiprocessors = 132;
  // blocks of clusters that run at the same time
  int cluster_blocks = 132;
  // whether the device has clusters and early launches
  bool sm_90 = true;
  // launches are noted and not run
  bool plan = false;
  // Memory (address, bytes) that the kernel in front of an early launch has yet to write: every byte is 0xFF until all
  // threads of a cluster have waited for it.
  std::vector<std::pair<unsigned char*, int64_t>> unwritten;
};

// a launch as it was asked for
struct Planned {
  unsigned x, y, z, threads;
  int64_t shared;
  int cluster;
  bool early;
};

extern Counters counters;
extern std::vector<Planned> planned;
extern Controls controls;

// the same for every launch: `body` runs one thread. Blocks of a cluster follow each other along z and run together;
// `early`: the launch does not wait for the kernel in front of it, so its own threads have to.
void run(dim3 grid, dim3 block, int64_t shared_bytes, int cluster, bool early, const std::function<void()>& body);

void sync_block();
void sync_warp();
void sync_cluster();
void wait_for_predecessor();

int lane();

// the 64 bytes that each lane of the warp hands to the others in one operation
struct alignas(64) Slot {
  unsigned char bytes[64];
};

// publishes this lane's slot and returns the warp's 32 once all have arrived
const Slot* exchange_slots(const Slot& mine);

template <typename T>
struct Lanes {
  const Slot* slots;

  T operator[](int lane) const {
    T value;
    std::memcpy(&value, slots[lane].bytes, sizeof(T));
    return value;
  }
};

template <typename T>
Lanes<T> exchange(const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot));
  Slot mine;
  std::memcpy(mine.bytes, &value, sizeof(T));
  return {exchange_slots(mine)};
}

// `bytes` of the block's dynamic shared memory from `offset` on, which this call moves past the array and its gap
void* take_shared(int64_t& offset, int64_t& taken, int64_t bytes);
bool is_shared(const void* address, int64_t bytes);
// the same place in the shared memory of another block of the cluster
void* shared_of(int rank, const void* address);

// asynchronous copies into shared memory: done as late as the waits allow
void copy_later(void* to, const void* from, int bytes);  // from null: zeros
void commit_copies();
void wait_copies(int groups_left);

[[noreturn]] void fail(const std::string& text);

}  // namespace liteseg::emulator
