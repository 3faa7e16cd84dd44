// One block, or one cluster of blocks, at a time; its threads are fibers that give way only where CUDA's would wait for
// each other. What a kernel does wrong (a barrier that not all threads reach, a write beyond a shared array, more
// shared memory than launched with) ends the launch with an error that says so.
#include "cuda_runtime.h"

#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__) || defined(LITESEG_EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#else
#define EMULATOR_ASAN 0
#endif

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace liteseg::emulator {

dim3 thread_index, block_index, block_size, grid_size;
Counters counters{};
std::vector<Planned> planned;
Controls controls;

namespace {

constexpr int kWarp = 32;
constexpr int64_t kStack = EMULATOR_ASAN ? 512 << 10 : 128 << 10;
constexpr int64_t kGap = 128;
constexpr unsigned char kPoison = 0xFF;

#ifdef __x86_64__
struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void liteseg_emulator_switch(void** save, void* load);
__asm__(R"(
.text
.hidden liteseg_emulator_switch
.globl liteseg_emulator_switch
.type liteseg_emulator_switch, @function
liteseg_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size liteseg_emulator_switch, .-liteseg_emulator_switch
)");

void switch_context(Context& from, Context& to) {
  liteseg_emulator_switch(&from.stack_pointer, to.stack_pointer);
}

void make_context(Context& context, unsigned char* stack, void (*entry)()) {
  // a return address for `entry`, which expects the stack pointer 8 bytes off a multiple of 16, and six registers
  auto* top = reinterpret_cast<void**>(stack + kStack);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(entry);
  for (int i = 3; i <= 8; ++i) {
    top[-i] = nullptr;
  }
  context.stack_pointer = top - 8;
}
#else
struct Context {
  ucontext_t state;
};

void switch_context(Context& from, Context& to) {
  swapcontext(&from.state, &to.state);
}

void make_context(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack = {stack, 0, static_cast<size_t>(kStack)};
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
#endif

enum class State : uint8_t { kReady, kAtBarrier, kAtCluster, kAtWait, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Block;

struct Fiber {
  Context context;
  Block* block = nullptr;
  State state = State::kDone;
  dim3 index;
  int number = 0;
  // which of the two slot sets the next exchange takes: a lane may be one operation ahead of another
  int parity = 0;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::unique_ptr<unsigned char, void (*)(void*)> stack{nullptr, std::free};
  void* fake_stack = nullptr;
};

struct Warp {
  Slot slots[2][kWarp];
  int waiting = 0;
};

struct Array {
  int64_t offset, bytes;
};

struct Block {
  dim3 index;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Array> arrays;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};
  int done = 0;
};

// what runs together: the blocks of one cluster, most often one
struct Cluster {
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  std::vector<Block> blocks;
  // those of `blocks` that this launch uses
  int size = 1;
  std::vector<Fiber*> order;
  int64_t shared_launched = 0;
  int threads = 0;
  bool early = false, waited = false;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  std::string error;
};

constexpr int64_t kSharedRoom = 1 << 20;

Cluster cluster;
std::mutex one_launch;

void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#if EMULATOR_ASAN
  __sanitizer_start_switch_fiber(fake, bottom, size);
#endif
}

void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* size) {
#if EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
}

void to_scheduler(bool for_good = false) {
  Fiber& me = *cluster.current;
  start_switch(for_good ? nullptr : &me.fake_stack, cluster.scheduler_bottom, cluster.scheduler_size);
  switch_context(me.context, cluster.scheduler);
  finish_switch(me.fake_stack, &cluster.scheduler_bottom, &cluster.scheduler_size);
}

void fiber_entry() {
  finish_switch(nullptr, &cluster.scheduler_bottom, &cluster.scheduler_size);
  try {
    (*cluster.body)();
  } catch (const std::exception& error) {
    if (cluster.error.empty()) {
      cluster.error = error.what();
    }
  }
  cluster.current->state = State::kDone;
  ++cluster.current->block->done;
  to_scheduler(true);
}

void to_fiber(Fiber& fiber) {
  ++counters.switches;
  cluster.current = &fiber;
  thread_index = fiber.index;
  block_index = fiber.block->index;
  start_switch(&cluster.scheduler_fake_stack, fiber.stack.get(), kStack);
  switch_context(cluster.scheduler, fiber.context);
  finish_switch(cluster.scheduler_fake_stack, nullptr, nullptr);
}

int count(const Block& block, State state) {
  return static_cast<int>(
      std::count_if(block.fibers.begin(), block.fibers.end(), [&](const Fiber& f) { return f.state == state; }));
}

void wake(Block& block) {
  for (Fiber& fiber : block.fibers) {
    fiber.state = State::kReady;
  }
}

// the memory that the kernel in front has yet to write, and what it will be
std::vector<std::vector<unsigned char>> written;

void hide_unwritten() {
  written.clear();
  for (const auto& [address, bytes] : controls.unwritten) {
    written.emplace_back(address, address + bytes);
    std::memset(address, kPoison, static_cast<size_t>(bytes));
  }
}

void show_unwritten() {
  for (size_t i = 0; i < written.size(); ++i) {
    std::memcpy(controls.unwritten[i].first, written[i].data(), written[i].size());
  }
  written.clear();
}

// where nobody can go on: all that live wait at the same place, or the kernel is wrong
std::string release() {
  const auto begin = cluster.blocks.begin(), end = begin + cluster.size;
  for (const State state : {State::kAtWait, State::kAtCluster}) {
    if (std::all_of(begin, end, [&](const Block& block) { return count(block, state) == cluster.threads; })) {
      std::for_each(begin, end, wake);
      if (state == State::kAtWait) {
        cluster.waited = true;
        show_unwritten();
      }
      return "";
    }
  }
  bool moved = false;
  for (auto block = begin; block != end; ++block) {
    if (count(*block, State::kAtBarrier) == cluster.threads) {
      wake(*block);
      moved = true;
    }
  }
  if (moved) {
    return "";
  }
  std::ostringstream text;
  for (auto block = begin; block != end; ++block) {
    if (block->done < cluster.threads) {
      text << "emulator: divergent barrier: " << count(*block, State::kAtBarrier) << " of " << cluster.threads
           << " threads at __syncthreads, " << count(*block, State::kAtWarp) << " at a warp operation, ";
      for (const auto& [state, name] : {std::pair(State::kAtCluster, " at the cluster's barrier, "),
                                        std::pair(State::kAtWait, " waiting for the kernel in front, ")}) {
        if (const int threads = count(*block, state); threads > 0) {
          text << threads << name;
        }
      }
      text << block->done << " returned";
      break;
    }
  }
  return text.str();
}

// f(first block) for each cluster
template <typename F>
void for_each_cluster(dim3 grid, std::mt19937_64& random, const F& f) {
  const int64_t count = int64_t{grid.x} * grid.y * (grid.z / static_cast<unsigned>(cluster.size));
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    order[static_cast<size_t>(i)] = controls.schedule == Schedule::kDown ? count - 1 - i : i;
  }
  if (controls.schedule == Schedule::kRandom) {
    std::shuffle(order.begin(), order.end(), random);
  }
  for (const int64_t i : order) {
    f(dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
           static_cast<unsigned>(i / grid.x / grid.y * cluster.size)));
  }
}

void prepare(dim3 size, int blocks) {
  cluster.threads = static_cast<int>(size.x * size.y * size.z);
  cluster.size = blocks;
  if (cluster.threads < 1 || cluster.threads > 1024) {
    fail("launch: expected 1 to 1024 threads in a block, got " + std::to_string(cluster.threads));
  }
  if (cluster.blocks.size() < static_cast<size_t>(blocks)) {
    cluster.blocks.resize(static_cast<size_t>(blocks));
  }
  cluster.order.clear();
  for (int b = 0; b < blocks; ++b) {
    Block& block = cluster.blocks[static_cast<size_t>(b)];
    if (block.shared == nullptr) {
      block.shared.reset(static_cast<unsigned char*>(std::aligned_alloc(1024, static_cast<size_t>(kSharedRoom))));
    }
    block.fibers.resize(static_cast<size_t>(cluster.threads));
    block.warps.resize(static_cast<size_t>((cluster.threads + kWarp - 1) / kWarp));
    for (int i = 0; i < cluster.threads; ++i) {
      Fiber& fiber = block.fibers[static_cast<size_t>(i)];
      fiber.block = &block;
      fiber.number = i;
      const auto number = static_cast<unsigned>(i);
      fiber.index = dim3(number % size.x, number / size.x % size.y, number / size.x / size.y);
      if (fiber.stack == nullptr) {
        fiber.stack.reset(static_cast<unsigned char*>(std::aligned_alloc(64, kStack)));
      }
      cluster.order.push_back(&fiber);
    }
  }
  if (controls.schedule == Schedule::kDown) {
    std::reverse(cluster.order.begin(), cluster.order.end());
  }
}

void start(Block& block) {
  block.done = 0;
  block.arrays.clear();
#if EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(block.shared.get(), static_cast<size_t>(kSharedRoom));
#endif
  if (controls.poison) {
    std::memset(block.shared.get(), kPoison,
                static_cast<size_t>(std::min(kSharedRoom, cluster.shared_launched + (64 << 10))));
  }
  for (Warp& warp : block.warps) {
    warp.waiting = 0;
  }
  for (Fiber& fiber : block.fibers) {
    fiber.state = State::kReady;
    fiber.parity = 0;
    fiber.groups.clear();
    fiber.open.clear();
#if EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStack);
#endif
    make_context(fiber.context, fiber.stack.get(), fiber_entry);
  }
}

// what the block has written beyond the ends of its shared arrays
std::string finish(Block& block) {
#if EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(block.shared.get(), static_cast<size_t>(kSharedRoom));
#endif
  for (const Array& array : block.arrays) {
    const unsigned char* gap = block.shared.get() + array.offset + array.bytes;
    if (controls.poison && std::any_of(gap, gap + kGap, [](unsigned char byte) { return byte != kPoison; })) {
      return "emulator: shared memory: a write beyond the end of an array of " + std::to_string(array.bytes) + " bytes";
    }
  }
  return "";
}

void run_cluster(std::mt19937_64& random) {
  const auto begin = cluster.blocks.begin(), end = begin + cluster.size;
  std::for_each(begin, end, start);
  cluster.waited = false;
  if (cluster.early) {
    hide_unwritten();
  }
  while (cluster.error.empty() &&
         std::any_of(begin, end, [](const Block& block) { return block.done < cluster.threads; })) {
    if (controls.schedule == Schedule::kRandom) {
      std::shuffle(cluster.order.begin(), cluster.order.end(), random);
    }
    bool moved = false;
    for (Fiber* fiber : cluster.order) {
      if (fiber->state == State::kReady && cluster.error.empty()) {
        moved = true;
        to_fiber(*fiber);
      }
    }
    if (!moved) {
      cluster.error = release();
    }
  }
  show_unwritten();
  if (cluster.error.empty() && cluster.early && !cluster.waited) {
    cluster.error = "emulator: launched early, but it never waits for the kernel in front of it";
  }
  for (auto block = begin; block != end && cluster.error.empty(); ++block) {
    cluster.error = finish(*block);
  }
}

}  // namespace

void fail(const std::string& text) {
  throw std::runtime_error("emulator: " + text);
}

void run(dim3 grid, dim3 size, int64_t shared_bytes, int blocks, bool early, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (shared_bytes > controls.max_shared) {
    fail("launch: " + std::to_string(shared_bytes) + " bytes of shared memory asked for, " +
         std::to_string(controls.max_shared) + " there");
  }
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    fail("launch: a grid that CUDA does not take");
  }
  if (blocks < 1 || blocks > 8 || grid.z % static_cast<unsigned>(blocks) != 0) {
    fail("launch: expected a cluster of 1 to 8 blocks that divides the grid, got " + std::to_string(blocks));
  }
  if ((early || blocks > 1) && !controls.sm_90) {
    fail("launch: clusters and early launches need sm_90");
  }
  if (controls.plan) {
    planned.push_back({grid.x, grid.y, grid.z, size.x * size.y * size.z, shared_bytes, blocks, early});
    return;
  }
  prepare(size, blocks);
  ++counters.launches;
  counters.early_launches += early;
  grid_size = grid;
  block_size = size;
  cluster.shared_launched = shared_bytes;
  cluster.early = early;
  cluster.body = &body;
  cluster.error.clear();
  std::mt19937_64 random(controls.seed);
  for_each_cluster(grid, random, [&](dim3 index) {
    if (cluster.error.empty()) {
      counters.blocks += blocks;
      counters.clusters += blocks > 1;
      for (int i = 0; i < blocks; ++i) {
        cluster.blocks[static_cast<size_t>(i)].index = dim3(index.x, index.y, index.z + static_cast<unsigned>(i));
      }
      run_cluster(random);
    }
  });
  if (!cluster.error.empty()) {
    throw std::runtime_error(cluster.error);
  }
}

namespace {

void wait_at(State state) {
  cluster.current->state = state;
  to_scheduler();
}

}  // namespace

void sync_block() {
  if (cluster.current->number == 0) {
    ++counters.barriers;
  }
  wait_at(State::kAtBarrier);
}

void sync_cluster() {
  wait_at(State::kAtCluster);
}

void wait_for_predecessor() {
  if (cluster.early) {
    wait_at(State::kAtWait);
  }
}

int lane() {
  return cluster.current->number % kWarp;
}

void sync_warp() {
  Fiber& me = *cluster.current;
  const int first = me.number / kWarp * kWarp;
  Warp& warp = me.block->warps[static_cast<size_t>(me.number / kWarp)];
  const int lanes = std::min(kWarp, cluster.threads - first);
  if (++warp.waiting < lanes) {
    me.state = State::kAtWarp;
    to_scheduler();
    return;
  }
  ++counters.warp_operations;
  warp.waiting = 0;
  for (int i = first; i < first + lanes; ++i) {
    me.block->fibers[static_cast<size_t>(i)].state = State::kReady;
  }
}

const Slot* exchange_slots(const Slot& mine) {
  Fiber& me = *cluster.current;
  Warp& warp = me.block->warps[static_cast<size_t>(me.number / kWarp)];
  Slot* slots = warp.slots[me.parity];
  me.parity ^= 1;
  slots[me.number % kWarp] = mine;
  sync_warp();
  return slots;
}

void* take_shared(int64_t& offset, int64_t& taken, int64_t bytes) {
  Block& block = *cluster.current->block;
  const int64_t begin = offset;
  taken += (bytes + 15) / 16 * 16;
  offset += (bytes + 15) / 16 * 16 + kGap;
  if (taken > cluster.shared_launched) {
    fail("shared memory: " + std::to_string(taken) + " bytes taken, " + std::to_string(cluster.shared_launched) +
         " launched with");
  }
  const auto same = [&](const Array& array) { return array.offset == begin && array.bytes == bytes; };
  if (std::none_of(block.arrays.begin(), block.arrays.end(), same)) {
    block.arrays.push_back({begin, bytes});
#if EMULATOR_ASAN
    ASAN_POISON_MEMORY_REGION(block.shared.get() + begin + bytes, kGap);
#endif
  }
  return block.shared.get() + begin;
}

bool is_shared(const void* address, int64_t bytes) {
  const Block& block = *cluster.current->block;
  const auto* at = static_cast<const unsigned char*>(address);
  return std::any_of(block.arrays.begin(), block.arrays.end(), [&](const Array& array) {
    const unsigned char* begin = block.shared.get() + array.offset;
    return at >= begin && at + bytes <= begin + array.bytes;
  });
}

void* shared_of(int rank, const void* address) {
  if (rank < 0 || rank >= cluster.size || !is_shared(address, 1)) {
    fail("cluster: expected a shared array and one of " + std::to_string(cluster.size) + " blocks, got block " +
         std::to_string(rank));
  }
  const auto offset = static_cast<const unsigned char*>(address) - cluster.current->block->shared.get();
  return cluster.blocks[static_cast<size_t>(rank)].shared.get() + offset;
}

void copy_later(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(bytes) != 0 ||
      reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bytes) != 0) {
    fail("cp.async: an address that is not a multiple of " + std::to_string(bytes));
  }
  if (!is_shared(to, bytes)) {
    fail("cp.async: a target outside the block's shared arrays");
  }
  ++counters.shared_copies;
  cluster.current->open.push_back({to, from, bytes});
}

void commit_copies() {
  cluster.current->groups.push_back(std::move(cluster.current->open));
  cluster.current->open.clear();
}

void wait_copies(int groups_left) {
  auto& groups = cluster.current->groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
      } else {
        std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      }
    }
    groups.pop_front();
  }
}

}  // namespace liteseg::emulator
