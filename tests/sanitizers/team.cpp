// The team of threads (engine/runtime/team.cpp) on the pool (engine/runtime/pool.cpp): a program for the thread sanitizer.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "engine/runtime/arena.h"
#include "engine/runtime/pool.h"
#include "engine/runtime/team.h"

// what team.cpp takes from arena.cpp
namespace liteseg::cpu {

char* thread_buffer(Slot, int64_t bytes) {
  static thread_local std::vector<char> buffer;
  buffer.resize(static_cast<size_t>(bytes));
  return buffer.data();
}

}  // namespace liteseg::cpu

namespace {

// Chains of stages in which every item reads two items of the stage before, whoever has written them. With `racing` a
// stage does not wait: it reads what is written in the same one.
bool run(const liteseg::cpu::Threads& threads, bool racing) {
  constexpr int64_t items = 61;
  constexpr int kStages = 20;
  std::vector<std::vector<int64_t>> values(kStages + 1, std::vector<int64_t>(items, 1));
  std::vector<liteseg::cpu::Stage> stages;
  for (int s = 0; s < kStages; ++s) {
    // stages without an item and with a single one too
    const int64_t count = s % 7 == 3 ? 0 : s % 7 == 5 ? 1 : items;
    stages.push_back({count, 8, [&values, s, racing](int64_t begin, int64_t end, char* scratch, bool fresh) {
                        auto* seen = reinterpret_cast<int64_t*>(scratch);
                        *seen = fresh ? 0 : *seen;
                        const std::vector<int64_t>& from = values[static_cast<size_t>(racing ? s + 1 : s)];
                        for (int64_t i = begin; i < end; ++i) {
                          const int64_t sum = from[i] + from[(i + 30) % items];
                          values[static_cast<size_t>(s) + 1][i] = sum % 1000003;
                          *seen += 1;
                        }
                      }});
  }
  std::vector<double> seconds;
  liteseg::cpu::run_stages(stages, threads, &seconds);
  for (int s = 0; s < kStages; ++s) {
    for (int64_t i = 0; i < items; ++i) {
      const auto& from = values[static_cast<size_t>(s)];
      const bool written = i < stages[static_cast<size_t>(s)].items;
      const int64_t wanted = written ? (from[i] + from[(i + 30) % items]) % 1000003 : 1;
      if (values[static_cast<size_t>(s) + 1][i] != wanted) {
        return racing;
      }
    }
  }
  return seconds.size() == kStages;
}

}  // namespace

int main(int count, char** arguments) {
  const bool racing = count > 1 && std::atoi(arguments[1]) != 0;
  std::atomic<bool> right{true};
  for (const int64_t count_of_threads : {1, 2, 3, 8}) {
    const liteseg::cpu::Pool threads(count_of_threads);
    for (int round = 0; round < 50; ++round) {
      const auto call = [&] {
        if (!run(threads, racing)) {
          right = false;
        }
      };
      // two callers at once, who share the threads
      std::thread other(call);
      call();
      other.join();
    }
  }
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
