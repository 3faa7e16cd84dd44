#include "engine/plan/layers.h"

namespace liteseg::cpu {

// along the channels
void graph_concat(Builder& b) {
  const int64_t count = b.code().word("a number of maps", 1, 1000);
  std::vector<size_t> parts;
  int64_t c = 0;
  for (int64_t i = 0; i < count; ++i) {
    parts.push_back(b.source());
    const Map& first = b.map(parts.front());
    const Map& part = b.map(parts.back());
    LITESEG_CHECK(part.n == first.n && part.h == first.h && part.w == first.w, b.op(), "inputs",
                  text("maps of ", first.n, "x", first.h, "x", first.w), text(part.n, "x", part.h, "x", part.w));
    c += part.c;
  }
  const Map like = b.map(parts.front());
  const size_t to = b.add_map(like.n, c, like.h, like.w);
  int64_t channel = 0;
  for (const size_t part : parts) {
    auto g = std::make_shared<CopyArgs>();
    g->c = b.map(part).c;
    g->h = g->oh = like.h;
    g->w = g->ow = like.w;
    g->fs = innermost(g->c, like.h, like.w);
    g->ts = innermost(c, like.h, like.w);
    b.place([&b, g, part, to, channel] {
      g->from = b.at(part);
      g->to = b.at(to) + channel;
    });
    b.copy_stage(g, like.n);
    channel += g->c;
  }
}

}  // namespace liteseg::cpu
