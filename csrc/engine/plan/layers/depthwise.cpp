#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

void graph_depthwise(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<DepthwiseArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->c = code.channels();
  b.check_channels(from, g->c);
  g->kh = code.word("a kernel", 1, kMostDepthwiseTaps);
  g->kw = code.word("a kernel", 1, kMostDepthwiseTaps);
  g->sh = code.word("a stride", 1, kMostStride);
  g->sw = code.word("a stride", 1, kMostStride);
  g->dh = code.word("a dilation", 1, 1 << 16);
  g->dw = code.word("a dilation", 1, 1 << 16);
  const Edges edges = b.edges();
  g->ph = edges.top;
  g->pw = edges.left;
  g->activation = code.any_activation(&g->slope);
  g->weight = code.weight(g->kh * g->kw * g->c);
  g->bias = b.bias(g->c);
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = padded_size(b, g->h, g->kh, g->sh, g->dh, edges.top + edges.bottom);
  g->ow = padded_size(b, g->w, g->kw, g->sw, g->dw, edges.left + edges.right);
  const size_t to = b.add_map(g->n, g->c, g->oh, g->ow);
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  b.stage(g->n * g->oh, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.depthwise(*g, begin, end); });
}

}  // namespace liteseg::cpu
