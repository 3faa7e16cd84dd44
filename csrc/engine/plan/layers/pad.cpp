#include "engine/plan/layers.h"

namespace liteseg::cpu {

// zeros around a map; negative numbers crop
void graph_pad(Builder& b) {
  auto g = std::make_shared<CopyArgs>();
  const Builder::Source from = b.any_source();
  const Map map = b.map(from.id);
  constexpr int64_t most = 1 << 16;
  g->top = b.code().word("a padding", -most, most);
  const int64_t bottom = b.code().word("a padding", -most, most);
  g->left = b.code().word("a padding", -most, most);
  const int64_t right = b.code().word("a padding", -most, most);
  g->c = map.c;
  g->h = map.h;
  g->w = map.w;
  g->oh = map.h + g->top + bottom;
  g->ow = map.w + g->left + right;
  LITESEG_CHECK(g->oh > 0 && g->ow > 0, b.op(), "inputs", "something left after cropping", text(g->oh, "x", g->ow));
  g->fs = from.strides;
  g->ts = innermost(map.c, g->oh, g->ow);
  const size_t to = b.add_map(map.n, map.c, g->oh, g->ow);
  b.place([&b, g, from, to] {
    g->from = b.at(from);
    g->to = b.at(to);
  });
  b.copy_stage(g, map.n);
}

}  // namespace liteseg::cpu
