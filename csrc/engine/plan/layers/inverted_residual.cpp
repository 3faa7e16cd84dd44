#include "engine/kernels/inverted_residual.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

// channels of the input, of the expanded map and of the output
void read_channels(Builder& b, InvertedResidualArgs* g, bool* expands) {
  Program& code = b.code();
  *expands = code.flag();
  g->hidden = code.channels();
  LITESEG_CHECK(*expands || g->hidden == g->c, b.op(), "program", text(g->c, " hidden channels"), g->hidden);
  g->co = code.channels();
}

void read_expansion(Builder& b, InvertedResidualArgs* g, bool expands) {
  if (expands) {
    g->expand = b.matrix(g->hidden, g->c);
    g->expand_bias = b.bias(g->hidden);
  }
}

void read_projection(Builder& b, InvertedResidualArgs* g) {
  g->depthwise_bias = b.bias(g->hidden);
  g->project = b.matrix(g->co, g->hidden);
  g->project_bias = b.bias(g->co);
}

// when the output's size is known
void finish(const Builder& b, InvertedResidualArgs* g) {
  LITESEG_CHECK(!g->residual || (g->co == g->c && g->oh == g->h && g->ow == g->w), b.op(), "program",
                "a residual of the output's shape", "another");
  g->xs = innermost(g->c, g->h, g->w);
  g->os = innermost(g->co, g->oh, g->ow);
  const int64_t plane = g->oh * g->ow;
  g->tile = b.balanced(tile_pixels(g->hidden, g->n * plane, 48, b.threads()), g->n, plane);
}

void add_stage(Builder& b, const std::shared_ptr<InvertedResidualArgs>& g, size_t from) {
  const size_t to = b.add_map(g->n, g->co, g->oh, g->ow);
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const InvertedResidualTable& table = LITESEG_CHOOSE(inverted_residual_float_table);
  b.stage(g->n * div_up(g->oh * g->ow, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run[kFloat](*g, begin, end, scratch, fresh);
          });
}

void add_bf16_stages(Builder& b, const InvertedResidualArgs& f, size_t from) {
  auto g = std::make_shared<InvertedResidualBf16Args>();
  g->expand = f.expand;
  g->expand_bias = f.expand_bias;
  g->depthwise = f.depthwise;
  g->depthwise_bias = f.depthwise_bias;
  g->project = f.project;
  g->project_bias = f.project_bias;
  g->n = f.n;
  g->c = f.c;
  g->h = f.h;
  g->w = f.w;
  g->hidden = f.hidden;
  g->co = f.co;
  g->oh = f.oh;
  g->ow = f.ow;
  g->stride = f.sh;
  g->dilation = f.dh;
  g->activation = f.activation;
  g->residual = f.residual;
  g->tile = f.tile;
  const size_t to = b.add_map(f.n, f.co, f.oh, f.ow);
  const int64_t pairs = div_up(f.h, 2);
  const int64_t expanded = f.n * pairs * (f.w + 2 * std::min(f.dh, f.w)) * round_up(f.hidden, kWidestVector);
  // floats of a wide map that stays in the caches until the next stage; a larger one goes through rings
  constexpr int64_t most = 1 << 19;
  g->whole = expanded <= most;
  const auto store = b.temporary(g->whole ? expanded : 0);
  b.place([&b, g, from, to, store] {
    g->x = b.bf16_at(from);
    g->out = b.bf16_at(to);
    g->expanded = reinterpret_cast<uint32_t*>(b.at(store));
  });
  const InvertedResidualBf16Table& table = *b.bf16_tables()->inverted_residual;
  if (g->whole) {
    b.stage(f.n * pairs, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.expand(*g, begin, end); });
  }
  b.stage(f.n * div_up(f.oh * f.ow, f.tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run(*g, begin, end, scratch, fresh);
          });
}

}  // namespace

// 3x3, with a padding like the dilation
void plan_inverted_residual(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<InvertedResidualArgs>();
  const size_t from = b.any_source().id;
  const Map map = b.map(from);
  g->c = code.channels();
  b.check_inner(from, g->c);
  bool expands = false;
  read_channels(b, g.get(), &expands);
  g->sh = g->sw = code.word("a stride", 1, 8);
  g->dh = g->dw = g->ph = g->pw = code.word("a dilation", 1, 1 << 16);
  g->activation = code.activation();
  g->residual = code.flag();
  read_expansion(b, g.get(), expands);
  g->depthwise = b.inner_depthwise(g->hidden);
  read_projection(b, g.get());
  g->kh = g->kw = 3;
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = output_size(b.op(), "x", g->h, 3, g->sh, g->ph, g->dh);
  g->ow = output_size(b.op(), "x", g->w, 3, g->sw, g->pw, g->dw);
  finish(b, g.get());
  if (b.bf16_tables() != nullptr) {
    return add_bf16_stages(b, *g, from);
  }
  add_stage(b, g, from);
}

void graph_inverted_residual(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<InvertedResidualArgs>();
  const size_t from = b.source();
  const Map map = b.map(from);
  g->c = code.channels();
  b.check_channels(from, g->c);
  bool expands = false;
  read_channels(b, g.get(), &expands);
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
  g->out_activation = code.any_activation(&g->out_slope);
  g->residual = code.flag();
  read_expansion(b, g.get(), expands);
  g->depthwise = code.weight(g->kh * g->kw * g->hidden);
  read_projection(b, g.get());
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = padded_size(b, g->h, g->kh, g->sh, g->dh, edges.top + edges.bottom);
  g->ow = padded_size(b, g->w, g->kw, g->sw, g->dw, edges.left + edges.right);
  finish(b, g.get());
  add_stage(b, g, from);
}

}  // namespace liteseg::cpu
