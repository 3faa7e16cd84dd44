#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// sum or product of two maps, the second of which may be one pixel for all
void graph_combine(Builder& b) {
  auto g = std::make_shared<CombineArgs>();
  g->combination = static_cast<int>(b.code().word("a combination", kAdd, kMultiply));
  const size_t first = b.source();
  const size_t second = b.source();
  g->activation = b.code().any_activation(&g->slope);
  const Map x = b.map(first);
  const Map y = b.map(second);
  const bool same = x.h == y.h && x.w == y.w;
  g->spread = !same;
  LITESEG_CHECK(x.n == y.n && x.c == y.c && (same || (y.h == 1 && y.w == 1)), b.op(), "inputs",
                text("a second map like ", x.n, "x", x.c, "x", x.h, "x", x.w, " or a pixel of it"),
                text(y.n, "x", y.c, "x", y.h, "x", y.w));
  g->n = x.n;
  g->c = x.c;
  g->plane = x.h * x.w;
  const size_t to = b.add_map(x.n, x.c, x.h, x.w);
  b.place([&b, g, first, second, to] {
    g->a = b.at(first);
    g->b = b.at(second);
    g->out = b.at(to);
  });
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  b.stage(g->n * g->plane, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.combine(*g, begin, end); });
}

}  // namespace liteseg::cpu
