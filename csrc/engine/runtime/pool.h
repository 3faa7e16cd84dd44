// Threads of the engine's own, for callers that bring none.
#pragma once

#include "engine/runtime/team.h"

namespace liteseg::cpu {

// Callers of `run` share the pool's threads, each working itself too: a body that no thread is free for is not called,
// which costs a team no more than time.
class Pool final : public Threads {
 public:
  // the calling thread is one of them: `count` - 1 are started
  explicit Pool(int64_t count);
  ~Pool() override;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int64_t count() const override {
    return count_;
  }
  void run(int64_t count, const std::function<void()>& body) const override;

 private:
  struct State;
  int64_t count_;
  State* state_;
};

// processors that this process may use
int64_t processors();

}  // namespace liteseg::cpu
