// What the layers between numbers and bytes share.
#pragma once

#include "engine/plan/builder.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// how far apart the pixels of both maps are
inline void set_pixels(const Builder& b, ConvertArgs* g, size_t numbers, size_t bytes) {
  g->c = b.map(numbers).c;
  g->half = b.bf16_tables() != nullptr;
  g->from_pixel = b.map(numbers).pixel * (g->half ? 2 : 1);
  g->to_pixel = b.map(bytes).pixel * static_cast<int64_t>(sizeof(float));
}

inline void add_convert_stage(Builder& b, const std::shared_ptr<ConvertArgs>& g, const Map& map,
                              void (*run)(const ConvertArgs&, int64_t, int64_t)) {
  const int64_t width = map.w;
  b.stage(map.n * map.h, 0,
          [g, width, run](int64_t begin, int64_t end, char*, bool) { run(*g, begin * width, end * width); });
}

}  // namespace liteseg::cpu
