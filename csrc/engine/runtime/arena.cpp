#include "engine/runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "engine/runtime/guard.h"

namespace liteseg::cpu {
namespace {

constexpr size_t kAlignment = 64;
// larger buffers go back to the system after the call that needed them, when the next smaller request comes
constexpr int64_t kKeep = int64_t{16} << 20;

struct Buffer {
  char* data = nullptr;
  int64_t size = 0;

  ~Buffer() {
    std::free(data);
  }
  char* at_least(int64_t bytes) {
    if (bytes > size || (size > kKeep && bytes <= kKeep)) {
      std::free(data);
      data = nullptr;
      size = 0;
      const int64_t rounded = (bytes + 4095) / 4096 * 4096;
      data = static_cast<char*>(std::aligned_alloc(kAlignment, static_cast<size_t>(rounded)));
      if (data == nullptr) {
        throw std::bad_alloc();
      }
      size = rounded;
    }
    allow_only(data, bytes, size);
    return data;
  }
};

struct Mapping {
  char* data = nullptr;
  int64_t size = 0;

  ~Mapping() {
    clear();
  }
  void clear() {
    if (data != nullptr) {
      // whoever is given these addresses next knows nothing of the guard
      allow(data, size);
      munmap(data, static_cast<size_t>(size));
    }
    data = nullptr;
    size = 0;
  }
  char* at_least(int64_t bytes) {
    if (bytes > size) {
      clear();
      constexpr int64_t huge_page = int64_t{2} << 20;
      const int64_t rounded = (bytes + huge_page - 1) / huge_page * huge_page;
      void* memory =
          mmap(nullptr, static_cast<size_t>(rounded), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) {
        throw std::bad_alloc();
      }
      // fewer faults at the first touch; only advice, so its result does not matter
      madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);
      data = static_cast<char*>(memory);
      size = rounded;
    }
    allow_only(data, bytes, size);
    return data;
  }
};

}  // namespace

char* thread_buffer(Slot slot, int64_t bytes) {
  static thread_local Buffer buffers[static_cast<int>(Slot::kCount)];
  return buffers[static_cast<int>(slot)].at_least(std::max<int64_t>(bytes, 1));
}

char* arena(int64_t bytes) {
  static thread_local Mapping mapping;
  return mapping.at_least(bytes);
}

}  // namespace liteseg::cpu
