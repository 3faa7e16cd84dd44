#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// maxima or means of windows
void graph_window(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<WindowArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->maximum = code.flag();
  g->counts_zeros = code.flag();
  g->kh = code.word("a kernel", 1, 1 << 16);
  g->kw = code.word("a kernel", 1, 1 << 16);
  g->sh = code.word("a stride", 1, 1 << 16);
  g->sw = code.word("a stride", 1, 1 << 16);
  g->ph = code.word("a padding", 0, g->kh / 2);
  g->pw = code.word("a padding", 0, g->kw / 2);
  g->n = map.n;
  g->c = map.c;
  g->h = map.h;
  g->w = map.w;
  g->oh = output_size(b.op(), "height", g->h, g->kh, g->sh, g->ph, 1);
  g->ow = output_size(b.op(), "width", g->w, g->kw, g->sw, g->pw, 1);
  const size_t to = b.add_map(g->n, g->c, g->oh, g->ow);
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  b.stage(g->n * g->oh, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.window(*g, begin, end); });
}

}  // namespace liteseg::cpu
