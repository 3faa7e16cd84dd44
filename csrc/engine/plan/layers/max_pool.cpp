#include "engine/kernels/convolution.h"
#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// 2x2, stride 2
void plan_max_pool(Builder& b) {
  auto g = std::make_shared<PoolArgs>();
  const size_t from = b.inner_source(b.code().channels());
  const Map map = b.map(from);
  g->n = map.n;
  g->c = map.c;
  g->h = map.h;
  g->w = map.w;
  const size_t to = b.add_pooled_map(g->n, g->c, g->h, g->w, true);
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const ConvolutionTable& table = LITESEG_CHOOSE(convolution_table);
  b.stage(g->n * (g->h / 2), 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.pool(*g, begin, end); });
}

}  // namespace liteseg::cpu
