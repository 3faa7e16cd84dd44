#include "engine/plan/layers.h"

namespace liteseg::cpu {
namespace {

// the input that each output of one axis takes, by torch's rule
std::shared_ptr<std::vector<int32_t>> sources(int64_t in, int64_t out) {
  auto places = std::make_shared<std::vector<int32_t>>();
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  for (int64_t i = 0; i < out; ++i) {
    places->push_back(static_cast<int32_t>(std::min(static_cast<int64_t>(static_cast<float>(i) * scale), in - 1)));
  }
  return places;
}

}  // namespace

// a resize that takes the nearest pixel
void graph_nearest(Builder& b) {
  auto g = std::make_shared<CopyArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->oh = b.size_argument();
  g->ow = b.size_argument();
  g->c = map.c;
  g->h = map.h;
  g->w = map.w;
  g->fs = innermost(map.c, map.h, map.w);
  g->ts = innermost(map.c, g->oh, g->ow);
  const auto ys = sources(map.h, g->oh);
  const auto xs = sources(map.w, g->ow);
  g->ys = ys->data();
  g->xs = xs->data();
  const size_t to = b.add_map(map.n, map.c, g->oh, g->ow);
  b.place([&b, g, from, to, ys, xs] {
    g->from = b.at(from);
    g->to = b.at(to);
  });
  b.copy_stage(g, map.n);
}

}  // namespace liteseg::cpu
