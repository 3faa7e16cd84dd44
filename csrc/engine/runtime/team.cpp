#include "engine/runtime/team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "engine/runtime/arena.h"
#include "engine/runtime/guard.h"

namespace liteseg::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kCacheLine = 64;
constexpr int kChunks = 8;  // a thread's own part is taken in about so many pieces
constexpr int kSpins = 2000;

bool forked = false;

const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// a half-open range of items that its owner shortens from the front and others from the back
class alignas(kCacheLine) Range {
 public:
  void set(int64_t begin, int64_t end) {
    state_.store(join(begin, end), std::memory_order_release);
  }
  // up to `count` items from the front
  bool take(int64_t count, int64_t* begin, int64_t* end) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (first(state) < last(state)) {
      *begin = first(state);
      *end = std::min(last(state), *begin + count);
      if (state_.compare_exchange_weak(state, join(*end, last(state)), std::memory_order_acq_rel)) {
        return true;
      }
    }
    return false;
  }
  // half of them from the back, where there are two or more
  bool steal(int64_t* begin, int64_t* end) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (first(state) + 1 < last(state)) {
      *end = last(state);
      *begin = *end - (*end - first(state)) / 2;
      if (state_.compare_exchange_weak(state, join(first(state), *begin), std::memory_order_acq_rel)) {
        return true;
      }
    }
    return false;
  }
  // all of them
  bool take_all(int64_t* begin, int64_t* end) {
    return take(int64_t{1} << 31, begin, end);
  }

 private:
  static uint64_t join(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }
  static int64_t first(uint64_t state) {
    return static_cast<int64_t>(state >> 32);
  }
  static int64_t last(uint64_t state) {
    return static_cast<int64_t>(state & 0xffffffffu);
  }

  std::atomic<uint64_t> state_{0};
};

class alignas(kCacheLine) Countdown {
 public:
  void start(int64_t items) {
    left_.store(items, std::memory_order_relaxed);
    open_.store(items > 0 ? 1 : 0, std::memory_order_relaxed);
  }
  void finish(int64_t items) {
    if (left_.fetch_sub(items, std::memory_order_acq_rel) == items) {
      open_.store(0, std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        syscall(SYS_futex, &open_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
      }
    }
  }
  bool done() const {
    return open_.load(std::memory_order_acquire) == 0;
  }
  void sleep() {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (!done()) {
      syscall(SYS_futex, &open_, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

 private:
  std::atomic<int64_t> left_{0};
  std::atomic<int32_t> open_{0};
  std::atomic<int32_t> sleepers_{0};
};

// Where the threads of a team run. A thread that wakes up on the processor of another one would take turns with it until
// the system balances them, which takes longer than a network does: it moves to a processor without one, and may be
// moved on from there as before.
class Seats {
 public:
  explicit Seats(int64_t threads) : threads_(threads), seats_(new std::atomic<int>[static_cast<size_t>(threads)]) {
    for (int64_t t = 0; t < threads; ++t) {
      seat(t).store(kNone, std::memory_order_relaxed);
    }
  }

  // to be called where thread t has slept
  void take(int64_t t) {
    seat(t).store(sched_getcpu(), std::memory_order_relaxed);
    cpu_set_t allowed;
    if (!shared(t) || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
      return;
    }
    cpu_set_t free = allowed;
    for (int64_t other = 0; other < threads_; ++other) {
      const int taken = seat(other).load(std::memory_order_relaxed);
      if (taken >= 0 && taken < CPU_SETSIZE) {
        CPU_CLR(static_cast<size_t>(taken), &free);
      }
    }
    if (CPU_COUNT(&free) > 0 && sched_setaffinity(0, sizeof(free), &free) == 0) {
      sched_setaffinity(0, sizeof(allowed), &allowed);
      seat(t).store(sched_getcpu(), std::memory_order_relaxed);
    }
  }

 private:
  static constexpr int kNone = -1;

  std::atomic<int>& seat(int64_t t) {
    return seats_[static_cast<size_t>(t)];
  }
  bool shared(int64_t t) {
    const int here = seat(t).load(std::memory_order_relaxed);
    for (int64_t other = 0; other < threads_; ++other) {
      if (other != t && here != kNone && seat(other).load(std::memory_order_relaxed) == here) {
        return true;
      }
    }
    return false;
  }

  int64_t threads_;
  std::unique_ptr<std::atomic<int>[]> seats_;
};

class Team {
 public:
  Team(const std::vector<Stage>& stages, int64_t threads)
      : stages_(stages),
        threads_(threads),
        ranges_(new Range[stages.size() * static_cast<size_t>(threads)]),
        countdowns_(new Countdown[stages.size()]),
        seats_(threads),
        ends_(stages.size()) {
    for (size_t s = 0; s < stages.size(); ++s) {
      const int64_t items = stages[s].items;
      countdowns_[s].start(items);
      for (int64_t t = 0; t < threads; ++t) {
        range(s, t).set(items * t / threads, items * (t + 1) / threads);
      }
      scratch_bytes_ = std::max(scratch_bytes_, stages[s].scratch_bytes);
    }
  }

  void work() {
    // first, so that a thread without memory for it is one that never came
    char* scratch = thread_buffer(Slot::kScratch, scratch_bytes_);
    const int64_t slot = arrived_.fetch_add(1, std::memory_order_relaxed);
    if (slot >= threads_) {
      return;
    }
    seats_.take(slot);
    for (size_t s = 0; s < stages_.size(); ++s) {
      work_on(s, slot, scratch);
    }
  }

  const std::vector<Clock::time_point>& ends() const {
    return ends_;
  }

 private:
  Range& range(size_t stage, int64_t slot) {
    return ranges_[stage * static_cast<size_t>(threads_) + static_cast<size_t>(slot)];
  }

  void work_on(size_t s, int64_t slot, char* scratch) {
    const Stage& stage = stages_[s];
    // a stage's own bytes, without the fences of the one before
    allow_only(scratch, stage.scratch_bytes, scratch_bytes_);
    Countdown& countdown = countdowns_[s];
    Range& own = range(s, slot);
    const int64_t chunk = std::max<int64_t>(1, stage.items / (threads_ * kChunks));
    bool fresh = true;
    int64_t begin = 0;
    int64_t end = 0;
    const auto empty_own = [&] {
      while (own.take(chunk, &begin, &end)) {
        stage.run(begin, end, scratch, fresh);
        fresh = false;
        countdown.finish(end - begin);
      }
    };
    empty_own();
    for (int spins = 0; !countdown.done(); ++spins) {
      for (int64_t i = 1; i < threads_; ++i) {
        Range& other = range(s, (slot + i) % threads_);
        // a last single item is left to its owner, unless that one never came
        const bool present = (slot + i) % threads_ < arrived_.load(std::memory_order_relaxed);
        if (other.steal(&begin, &end) || (!present && other.take_all(&begin, &end))) {
          own.set(begin, end);
          empty_own();
          spins = 0;
        }
      }
      if (spins < kSpins) {
        pause();
      } else if (!countdown.done()) {
        countdown.sleep();
        seats_.take(slot);
      }
    }
    if (slot == 0) {
      ends_[s] = Clock::now();
    }
  }

  const std::vector<Stage>& stages_;
  int64_t threads_;
  std::unique_ptr<Range[]> ranges_;
  std::unique_ptr<Countdown[]> countdowns_;
  Seats seats_;
  std::vector<Clock::time_point> ends_;
  int64_t scratch_bytes_ = 1;
  std::atomic<int64_t> arrived_{0};
};

}  // namespace

void run_stages(const std::vector<Stage>& stages, const Threads& threads, std::vector<double>* seconds) {
  const int64_t count = forked ? 1 : threads.count();
  Team team(stages, count);
  const Clock::time_point start = Clock::now();
  if (count == 1) {
    team.work();
  } else {
    threads.run(count, [&] { team.work(); });
  }
  if (seconds != nullptr) {
    seconds->clear();
    Clock::time_point last = start;
    for (const Clock::time_point end : team.ends()) {
      seconds->push_back(std::chrono::duration<double>(end - last).count());
      last = end;
    }
  }
}

}  // namespace liteseg::cpu
