#include <cstring>

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

void activate_stage(Builder& b, size_t from, size_t to, int activation, float slope) {
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  const auto ends = std::make_shared<std::pair<const float*, float*>>();
  b.place([&b, ends, from, to] { *ends = {b.at(from), b.at(to)}; });
  const Map map = b.map(to);
  b.stage(map.n * map.h * map.w, 0,
          [ends, c = map.c, activation, slope, &table](int64_t begin, int64_t end, char*, bool) {
            float* out = ends->second + begin * c;
            if (ends->first != ends->second) {
              std::memcpy(out, ends->first + begin * c, static_cast<size_t>((end - begin) * c) * sizeof(float));
            }
            table.activate(out, (end - begin) * c, activation, slope);
          });
}

void graph_activate(Builder& b) {
  const size_t from = b.source();
  float slope = 0.0f;
  const int activation = b.code().any_activation(&slope);
  const Map map = b.map(from);
  activate_stage(b, from, b.add_map(map.n, map.c, map.h, map.w), activation, slope);
}

}  // namespace liteseg::cpu
