#include "cpu/arena.h"

#include <sys/mman.h>

#include <new>

#include "cpu/guard.h"

namespace liteseg::cpu {
namespace {

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

char* arena(int64_t bytes) {
  static thread_local Mapping mapping;
  return mapping.at_least(bytes);
}

}  // namespace liteseg::cpu
