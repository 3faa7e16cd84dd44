#include "engine/runtime/pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

namespace liteseg::cpu {
namespace {

struct Job {
  const std::function<void()>* body;
  int64_t wanted;  // calls that threads of the pool may still begin
  int64_t running = 0;
};

}  // namespace

struct Pool::State {
  const pid_t owner = getpid();
  std::mutex mutex;
  std::condition_variable wanted, finished;
  std::list<Job*> jobs;  // with calls that are wanted
  bool ends = false;
  std::vector<std::thread> threads;

  void work() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      wanted.wait(lock, [this] { return ends || !jobs.empty(); });
      if (ends) {
        return;
      }
      Job* job = jobs.front();
      ++job->running;
      if (--job->wanted == 0) {
        jobs.pop_front();
      }
      lock.unlock();
      try {
        (*job->body)();
      } catch (...) {
        // a thread without memory for its part does none of the work, and the others do it
      }
      lock.lock();
      if (--job->running == 0) {
        finished.notify_all();
      }
    }
  }

  void end() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      ends = true;
    }
    wanted.notify_all();
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
};

Pool::Pool(int64_t count) : count_(count) {
  auto state = std::make_unique<State>();
  try {
    for (int64_t i = 1; i < count; ++i) {
      state->threads.emplace_back([own = state.get()] { own->work(); });
    }
  } catch (...) {
    state->end();
    throw;
  }
  state_ = state.release();
}

Pool::~Pool() {
  // in a forked child the threads do not exist, and the mutex may be held for ever
  if (state_->owner == getpid()) {
    state_->end();
    delete state_;
  }
}

void Pool::run(int64_t count, const std::function<void()>& body) const {
  Job job{&body, std::min(count, count_) - 1};
  if (job.wanted > 0) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->jobs.push_back(&job);
    state_->wanted.notify_all();
  }
  const auto join = [&] {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->jobs.remove(&job);
    state_->finished.wait(lock, [&job] { return job.running == 0; });
  };
  try {
    body();
  } catch (...) {
    join();
    throw;
  }
  join();
}

int64_t processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace liteseg::cpu
