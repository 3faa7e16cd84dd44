#include "engine/kernels/shuffle_unit.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

GroupedPointwise grouped(Builder& b, int64_t groups, int64_t in, int64_t out) {
  GroupedPointwise p{};
  p.groups = groups;
  p.in = in / groups;
  p.out = out / groups;
  p.bias_stride = round_up(p.out, b.panel() / 2);
  p.weight_stride = p.bias_stride * p.in;
  p.weight = b.code().weight(groups * p.weight_stride);
  p.bias = b.code().weight(groups * p.bias_stride);
  return p;
}

}  // namespace

void plan_shuffle_unit(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<ShuffleUnitArgs>();
  const size_t from = b.any_source().id;
  const Map map = b.map(from);
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->c = code.channels();
  b.check_inner(from, g->c);
  g->bottleneck = code.channels();
  g->branch = code.channels();
  const int64_t first_groups = code.channels();
  const int64_t groups = code.channels();
  LITESEG_CHECK(g->c % first_groups == 0 && g->bottleneck % first_groups == 0 && g->bottleneck % groups == 0 &&
                    g->branch % groups == 0,
                b.op(), "program", "groups that divide the channels", text(first_groups, " and ", groups));
  g->sh = g->sw = code.word("a stride", 1, 8);
  g->dh = g->dw = code.word("a dilation", 1, 1 << 16);
  const bool concat = code.flag();
  const int64_t most_stored = code.word("a number of floats", 0, int64_t{1} << 40);
  g->compress = grouped(b, first_groups, g->c, g->bottleneck);
  g->depthwise = code.weight(9 * g->bottleneck);
  g->depthwise_bias = b.bias(g->bottleneck);
  g->expand = grouped(b, groups, g->bottleneck, g->branch);
  g->average = concat ? code.weight(9 * g->c) : nullptr;
  g->oh = output_size(b.op(), "x", g->h, 3, g->sh, g->dh, g->dh);
  g->ow = output_size(b.op(), "x", g->w, 3, g->sw, g->dw, g->dw);
  LITESEG_CHECK(concat || (g->branch == g->c && g->oh == g->h && g->ow == g->w), b.op(), "program",
                "a branch of the input's shape", "another");
  const int64_t co = g->branch + (concat ? g->c : 0);
  g->xs = innermost(g->c, g->h, g->w);
  g->os = innermost(co, g->oh, g->ow);
  // computed place i of group j is shuffled place i * groups + j
  const auto shuffle = std::make_shared<std::vector<int32_t>>();
  for (int64_t place = 0; place < g->bottleneck; ++place) {
    shuffle->push_back(static_cast<int32_t>(place % groups * (g->bottleneck / groups) + place / groups));
  }
  g->shuffle = shuffle->data();
  const int64_t plane = g->oh * g->ow;
  g->tile = b.balanced(tile_pixels(g->bottleneck, g->n * plane, 48, b.threads()), g->n, plane);
  const int64_t pixels = g->n * g->h * g->w;
  g->compress_tile = b.balanced(48, 1, pixels);
  const int64_t image = g->h * g->w * round_up(g->bottleneck, kWidestVector);
  g->stores = image <= most_stored;
  const auto compressed = b.temporary(g->stores ? g->n * image : 0);
  const size_t to = b.add_map(g->n, co, g->oh, g->ow);
  b.place([&b, g, from, to, compressed, shuffle] {
    g->x = b.at(from);
    g->out = b.at(to);
    g->compressed = b.at(compressed);
  });
  const ShuffleUnitTable& table = LITESEG_CHOOSE(shuffle_unit_float_table);
  if (g->stores) {
    b.stage(div_up(pixels, g->compress_tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.compress(*g, begin, end); });
  }
  b.stage(g->n * div_up(plane, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run[kFloat](*g, begin, end, scratch, fresh);
          });
}

}  // namespace liteseg::cpu
