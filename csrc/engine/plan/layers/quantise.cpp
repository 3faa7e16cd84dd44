#include "engine/plan/layers.h"
#include "engine/plan/layers/convert.h"

namespace liteseg::cpu {

// a map of numbers to bytes
void plan_quantise(Builder& b) {
  auto g = std::make_shared<ConvertArgs>();
  const int64_t c = b.code().channels();
  const size_t from = b.inner_source(c);
  g->grid = b.grid();
  const Map map = b.map(from);
  const size_t to = b.add_byte_map(map.n, c, map.h, map.w, g->grid);
  set_pixels(b, g.get(), from, to);
  b.place([&b, g, from, to] {
    g->from = b.at(from);
    g->to = b.at(to);
  });
  const ConvertTable& table = LITESEG_CHOOSE_BYTES(convert_table);
  add_convert_stage(b, g, map, table.quantise);
}

}  // namespace liteseg::cpu
