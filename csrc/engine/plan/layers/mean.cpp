#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// over all pixels of a map
void graph_mean(Builder& b) {
  auto g = std::make_shared<MeanArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->n = map.n;
  g->c = map.c;
  g->h = map.h;
  g->w = map.w;
  const size_t to = b.add_map(map.n, map.c, 1, 1);
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  b.stage(g->n * div_up(g->c, table.mean_channels), 0,
          [g, &table](int64_t begin, int64_t end, char*, bool) { table.mean(*g, begin, end); });
}

}  // namespace liteseg::cpu
