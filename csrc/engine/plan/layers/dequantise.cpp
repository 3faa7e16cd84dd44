#include "engine/plan/layers.h"
#include "engine/plan/layers/convert.h"

namespace liteseg::cpu {

// a map of bytes to numbers
void plan_dequantise(Builder& b) {
  auto g = std::make_shared<ConvertArgs>();
  const int64_t c = b.code().channels();
  g->grid = b.grid();
  const size_t from = b.byte_source(c, g->grid);
  const Map map = b.map(from);
  const size_t to = b.add_map(map.n, c, map.h, map.w);
  set_pixels(b, g.get(), to, from);
  std::swap(g->from_pixel, g->to_pixel);
  b.place([&b, g, from, to] {
    g->from = b.at(from);
    g->to = b.at(to);
  });
  const ConvertTable& table = LITESEG_CHOOSE_BYTES(convert_table);
  add_convert_stage(b, g, map, table.dequantise);
}

}  // namespace liteseg::cpu
