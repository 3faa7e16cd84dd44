// One block at a time; its threads are fibers that give way only where CUDA's would wait for each other. What a kernel
// does wrong (a barrier that not all threads reach, a write beyond a shared array, more shared memory than launched
// with) ends the launch with an error that says so.
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

enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  Context context;
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
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> order;
  std::vector<Array> arrays;
  unsigned char* shared = nullptr;
  int64_t shared_room = 0, shared_launched = 0;
  int threads = 0, at_barrier = 0, done = 0;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  std::string error;
};

Block block;
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
  Fiber& me = *block.current;
  start_switch(for_good ? nullptr : &me.fake_stack, block.scheduler_bottom, block.scheduler_size);
  switch_context(me.context, block.scheduler);
  finish_switch(me.fake_stack, &block.scheduler_bottom, &block.scheduler_size);
}

void fiber_entry() {
  finish_switch(nullptr, &block.scheduler_bottom, &block.scheduler_size);
  try {
    (*block.body)();
  } catch (const std::exception& error) {
    if (block.error.empty()) {
      block.error = error.what();
    }
  }
  block.current->state = State::kDone;
  ++block.done;
  to_scheduler(true);
}

void to_fiber(Fiber& fiber) {
  ++counters.switches;
  block.current = &fiber;
  thread_index = fiber.index;
  start_switch(&block.scheduler_fake_stack, fiber.stack.get(), kStack);
  switch_context(block.scheduler, fiber.context);
  finish_switch(block.scheduler_fake_stack, nullptr, nullptr);
}

// where nobody can go on: all that live wait at the barrier, or the kernel is wrong
std::string release_barrier() {
  if (block.at_barrier == block.threads) {
    block.at_barrier = 0;
    for (Fiber& fiber : block.fibers) {
      fiber.state = State::kReady;
    }
    return "";
  }
  const int at_warp = block.threads - block.done - block.at_barrier;
  std::ostringstream text;
  text << "emulator: divergent barrier: " << block.at_barrier << " of " << block.threads
       << " threads at __syncthreads, " << at_warp << " at a warp operation, " << block.done << " returned";
  return text.str();
}

template <typename F>
void for_each_block(dim3 grid, std::mt19937_64& random, const F& f) {
  const int64_t count = int64_t{grid.x} * grid.y * grid.z;
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    order[static_cast<size_t>(i)] = controls.schedule == Schedule::kDown ? count - 1 - i : i;
  }
  if (controls.schedule == Schedule::kRandom) {
    std::shuffle(order.begin(), order.end(), random);
  }
  for (const int64_t i : order) {
    f(dim3(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
           static_cast<unsigned>(i / grid.x / grid.y)));
  }
}

void prepare(dim3 size) {
  block.threads = static_cast<int>(size.x * size.y * size.z);
  if (block.threads < 1 || block.threads > 1024) {
    fail("launch: expected 1 to 1024 threads in a block, got " + std::to_string(block.threads));
  }
  if (block.shared == nullptr) {
    block.shared_room = 1 << 20;
    block.shared = static_cast<unsigned char*>(std::aligned_alloc(1024, static_cast<size_t>(block.shared_room)));
  }
  block.fibers.resize(static_cast<size_t>(block.threads));
  block.warps.resize(static_cast<size_t>((block.threads + kWarp - 1) / kWarp));
  for (int i = 0; i < block.threads; ++i) {
    Fiber& fiber = block.fibers[static_cast<size_t>(i)];
    fiber.number = i;
    const auto number = static_cast<unsigned>(i);
    fiber.index = dim3(number % size.x, number / size.x % size.y, number / size.x / size.y);
    if (fiber.stack == nullptr) {
      fiber.stack.reset(static_cast<unsigned char*>(std::aligned_alloc(64, kStack)));
    }
  }
}

void run_block(std::mt19937_64& random) {
  block.at_barrier = block.done = 0;
  block.arrays.clear();
#if EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(block.shared, static_cast<size_t>(block.shared_room));
#endif
  if (controls.poison) {
    std::memset(block.shared, kPoison,
                static_cast<size_t>(std::min(block.shared_room, block.shared_launched + (64 << 10))));
  }
  for (Warp& warp : block.warps) {
    warp.waiting = 0;
  }
  block.order.resize(block.fibers.size());
  for (size_t i = 0; i < block.fibers.size(); ++i) {
    Fiber& fiber = block.fibers[i];
    block.order[i] = static_cast<int>(controls.schedule == Schedule::kDown ? block.fibers.size() - 1 - i : i);
    fiber.state = State::kReady;
    fiber.parity = 0;
    fiber.groups.clear();
    fiber.open.clear();
#if EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStack);
#endif
    make_context(fiber.context, fiber.stack.get(), fiber_entry);
  }
  while (block.done < block.threads) {
    if (controls.schedule == Schedule::kRandom) {
      std::shuffle(block.order.begin(), block.order.end(), random);
    }
    bool moved = false;
    for (const int i : block.order) {
      Fiber& fiber = block.fibers[static_cast<size_t>(i)];
      if (fiber.state == State::kReady) {
        moved = true;
        to_fiber(fiber);
        if (!block.error.empty()) {
          return;
        }
      }
    }
    if (!moved) {
      block.error = release_barrier();
      if (!block.error.empty()) {
        return;
      }
    }
  }
#if EMULATOR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(block.shared, static_cast<size_t>(block.shared_room));
#endif
  for (const Array& array : block.arrays) {
    const unsigned char* gap = block.shared + array.offset + array.bytes;
    if (controls.poison && std::any_of(gap, gap + kGap, [](unsigned char byte) { return byte != kPoison; })) {
      block.error =
          "emulator: shared memory: a write beyond the end of an array of " + std::to_string(array.bytes) + " bytes";
      return;
    }
  }
}

}  // namespace

void fail(const std::string& text) {
  throw std::runtime_error("emulator: " + text);
}

void run(dim3 grid, dim3 size, int64_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (shared_bytes > controls.max_shared) {
    fail("launch: " + std::to_string(shared_bytes) + " bytes of shared memory asked for, " +
         std::to_string(controls.max_shared) + " there");
  }
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    fail("launch: a grid that CUDA does not take");
  }
  prepare(size);
  ++counters.launches;
  grid_size = grid;
  block_size = size;
  block.shared_launched = shared_bytes;
  block.body = &body;
  block.error.clear();
  std::mt19937_64 random(controls.seed);
  for_each_block(grid, random, [&](dim3 index) {
    if (block.error.empty()) {
      ++counters.blocks;
      block_index = index;
      run_block(random);
    }
  });
  if (!block.error.empty()) {
    throw std::runtime_error(block.error);
  }
}

void sync_block() {
  if (block.current->number == 0) {
    ++counters.barriers;
  }
  block.current->state = State::kAtBarrier;
  ++block.at_barrier;
  to_scheduler();
}

int lane() {
  return block.current->number % kWarp;
}

void sync_warp() {
  Fiber& me = *block.current;
  const int first = me.number / kWarp * kWarp;
  Warp& warp = block.warps[static_cast<size_t>(me.number / kWarp)];
  const int lanes = std::min(kWarp, block.threads - first);
  if (++warp.waiting < lanes) {
    me.state = State::kAtWarp;
    to_scheduler();
    return;
  }
  ++counters.warp_operations;
  warp.waiting = 0;
  for (int i = first; i < first + lanes; ++i) {
    block.fibers[static_cast<size_t>(i)].state = State::kReady;
  }
}

const Slot* exchange_slots(const Slot& mine) {
  Fiber& me = *block.current;
  Warp& warp = block.warps[static_cast<size_t>(me.number / kWarp)];
  Slot* slots = warp.slots[me.parity];
  me.parity ^= 1;
  slots[me.number % kWarp] = mine;
  sync_warp();
  return slots;
}

void* take_shared(int64_t& offset, int64_t& taken, int64_t bytes) {
  const int64_t begin = offset;
  taken += (bytes + 15) / 16 * 16;
  offset += (bytes + 15) / 16 * 16 + kGap;
  if (taken > block.shared_launched) {
    fail("shared memory: " + std::to_string(taken) + " bytes taken, " + std::to_string(block.shared_launched) +
         " launched with");
  }
  const auto same = [&](const Array& array) { return array.offset == begin && array.bytes == bytes; };
  if (std::none_of(block.arrays.begin(), block.arrays.end(), same)) {
    block.arrays.push_back({begin, bytes});
#if EMULATOR_ASAN
    ASAN_POISON_MEMORY_REGION(block.shared + begin + bytes, kGap);
#endif
  }
  return block.shared + begin;
}

bool is_shared(const void* address, int64_t bytes) {
  const auto* at = static_cast<const unsigned char*>(address);
  return std::any_of(block.arrays.begin(), block.arrays.end(), [&](const Array& array) {
    const unsigned char* begin = block.shared + array.offset;
    return at >= begin && at + bytes <= begin + array.bytes;
  });
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
  block.current->open.push_back({to, from, bytes});
}

void commit_copies() {
  block.current->groups.push_back(std::move(block.current->open));
  block.current->open.clear();
}

void wait_copies(int groups_left) {
  auto& groups = block.current->groups;
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
