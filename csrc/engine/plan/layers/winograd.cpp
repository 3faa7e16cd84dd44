#include "engine/kernels/winograd.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

void read_weights(Builder& b, WinogradArgs* g) {
  const int64_t taps = (g->output + 2) * (g->output + 2);
  g->weight = b.matrix(g->co, taps * g->c);
  g->bias = b.bias(g->co);
}

// when the output's size is known; returns all tiles
int64_t set_grid(WinogradArgs* g) {
  g->grid_rows = std::min(g->dilation, g->oh);
  g->grid_columns = std::min(g->dilation, g->ow);
  g->rows = div_up(div_up(g->oh, g->dilation), g->output);
  g->columns = div_up(div_up(g->ow, g->dilation), g->output);
  return g->n * g->grid_rows * g->grid_columns * g->rows * g->columns;
}

// every block of tiles from transform to output, by one thread
void add_stage(Builder& b, const std::shared_ptr<WinogradArgs>& g, size_t from, size_t to, int64_t tiles) {
  const WinogradTable& table = LITESEG_CHOOSE(winograd_table);
  // most of the second level of cache, and whole blocks of the product
  constexpr int64_t floats = 163840;
  constexpr int64_t step = 24;
  g->block = std::max(step, floats / (table.v_floats(*g) + table.m_floats(*g, 1)) / step * step);
  g->block = b.balanced(g->block, 1, tiles);
  g->count = tiles;
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  b.stage(div_up(tiles, g->block), table.run_scratch(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run(*g, begin, end, scratch); });
}

// transforms, products and outputs of many tiles as stages of their own, so that the threads share the weights
void add_passes(Builder& b, const std::shared_ptr<WinogradArgs>& g, size_t from, size_t to, int64_t tiles) {
  const WinogradTable& table = LITESEG_CHOOSE(winograd_table);
  const int64_t panel_count = b.panels(g->co) / b.panel();
  const int64_t taps = (g->output + 2) * (g->output + 2);
  // a good part of the cache that all cores share
  constexpr int64_t floats = int64_t{6} << 20;
  g->block = std::max<int64_t>(48, floats / (table.v_floats(*g) + table.m_floats(*g, panel_count)));
  const int64_t rounds = std::max<int64_t>(1, div_up(tiles, g->block));
  g->block = round_up(div_up(tiles, rounds), 12);
  const auto v = b.temporary(table.v_floats(*g));
  const auto m = b.temporary(table.m_floats(*g, panel_count));
  for (int64_t first = 0; first < tiles; first += g->block) {
    const auto pass = std::make_shared<WinogradArgs>(*g);
    pass->first = first;
    pass->count = std::min(g->block, tiles - first);
    b.place([&b, pass, from, to, v, m] {
      pass->x = b.at(from);
      pass->out = b.at(to);
      pass->v = b.at(v);
      pass->m = b.at(m);
    });
    b.stage(pass->count, table.pass_scratch(*pass), [pass, &table](int64_t begin, int64_t end, char* scratch, bool) {
      table.transform(*pass, begin, end, scratch);
    });
    b.stage(taps * panel_count, 0,
            [pass, &table](int64_t begin, int64_t end, char*, bool) { table.multiply(*pass, begin, end); });
    b.stage(panel_count * pass->count, 0,
            [pass, &table](int64_t begin, int64_t end, char*, bool) { table.finish(*pass, begin, end); });
  }
}

}  // namespace

void plan_winograd(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<WinogradArgs>();
  const size_t from = b.inner_source(code.channels());
  const Map map = b.map(from);
  g->c = map.c;
  g->co = code.channels();
  g->padding = code.word("a padding", 0, 1 << 10);
  g->dilation = code.word("a dilation", 1, 1 << 16);
  g->output = 2 * code.word("a tile of 2 or 4 outputs", 1, 2);
  g->pool = code.flag();
  LITESEG_CHECK(!g->pool || g->dilation == 1, b.op(), "program", "no dilation before a pool", g->dilation);
  const bool passes = code.flag();
  g->activation = code.activation(&g->slope);
  read_weights(b, g.get());
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = output_size(b.op(), "x", g->h, 3, 1, g->padding, g->dilation);
  g->ow = output_size(b.op(), "x", g->w, 3, 1, g->padding, g->dilation);
  const size_t to = b.add_pooled_map(g->n, g->co, g->oh, g->ow, g->pool);
  if (g->pool) {
    g->oh -= g->oh % 2;
    g->ow -= g->ow % 2;
  }
  const int64_t tiles = set_grid(g.get());
  g->block = 1;
  if (passes) {
    add_passes(b, g, from, to, tiles);
  } else {
    add_stage(b, g, from, to, tiles);
  }
}

void graph_winograd(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<WinogradArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->c = code.channels();
  b.check_channels(from, g->c);
  g->co = code.channels();
  g->padding = code.word("a padding", 0, 1 << 10);
  g->dilation = code.word("a dilation", 1, 1 << 16);
  g->output = 2 * code.word("a tile of 2 or 4 outputs", 1, 2);
  const int activation = code.any_activation(&g->slope);
  g->activation = kernels_activation(activation);
  read_weights(b, g.get());
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = output_size(b.op(), "height", g->h, 3, 1, g->padding, g->dilation);
  g->ow = output_size(b.op(), "width", g->w, 3, 1, g->padding, g->dilation);
  const size_t to = b.add_map(g->n, g->co, g->oh, g->ow);
  add_stage(b, g, from, to, set_grid(g.get()));
  if (activation != g->activation) {
    activate_stage(b, to, to, activation, 0.0f);
  }
}

}  // namespace liteseg::cpu
