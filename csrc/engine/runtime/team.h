// Several stages of work on the caller's threads, entered once: between two stages only a counter is waited for.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace liteseg::cpu {

// Where the engine's threads come from.
class Threads {
 public:
  virtual ~Threads() = default;
  // that may work at once, the calling one among them
  virtual int64_t count() const = 0;
  // calls `body` up to `count` times, at best on as many threads at once; returns when all calls have
  virtual void run(int64_t count, const std::function<void()>& body) const = 0;
};

// Items [0, items) that may be done in any order and by any thread; a thread gets neighbouring ones as far as possible.
struct Stage {
  int64_t items;
  int64_t scratch_bytes;
  // fresh: nothing in `scratch` is of this stage yet; otherwise it is what the same thread's last call left there
  std::function<void(int64_t begin, int64_t end, char* scratch, bool fresh)> run;
};

// Runs the stages one after the other, on at most threads.count() threads. A thread that finishes early takes half of
// what another one has left, so a thread that the system holds back, or never starts, costs no more than the chunk it
// works on. Waiting threads spin for some microseconds and sleep then. In a forked child, where the threads of the
// parent's pool are gone, the caller works alone.
// `seconds`, where given, gets the time of each stage.
void run_stages(const std::vector<Stage>& stages, const Threads& threads, std::vector<double>* seconds);

}  // namespace liteseg::cpu
