#include "engine/kernels/convolution.h"

#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

// what plan and graph read alike, in front of the padding and behind it
void read_shape(Builder& b, ConvolutionArgs* g, const Builder::Source& from) {
  const Map& map = b.map(from.id);
  g->xs = from.strides;
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->weight = b.matrix(g->co, g->kernel * g->kernel * g->c);
  g->bias = b.bias(g->co);
}

// `after` follows on what a thread has just written
void add_stage(Builder& b, const std::shared_ptr<ConvolutionArgs>& g, const Builder::Source& from, size_t to,
               bool points, int after) {
  b.place([&b, g, from, to] {
    g->x = b.at(from);
    g->out = b.at(to);
  });
  const ConvolutionTable& table = LITESEG_CHOOSE(convolution_table);
  const GraphTable& graph = LITESEG_CHOOSE(graph_table);
  const auto finish = [g, after, &graph](int64_t first, int64_t last) {
    if (after != kNone) {
      graph.activate(g->out + first * g->co, (last - first) * g->co, after, 0.0f);
    }
  };
  if (points) {
    const int64_t pixels = g->n * g->h * g->w;
    g->tile = b.balanced(96, 1, pixels);
    b.stage(div_up(pixels, g->tile), 0, [g, finish, pixels, &table](int64_t begin, int64_t end, char*, bool) {
      table.points(*g, begin, end);
      finish(begin * g->tile, std::min(end * g->tile, pixels));
    });
    return;
  }
  b.stage(g->n * b.map(to).h, table.scratch_bytes(*g),
          [g, finish, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.rows(*g, begin, end, scratch, fresh);
            finish(begin * g->ow, end * g->ow);
          });
}

}  // namespace

void plan_convolution(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<ConvolutionArgs>();
  const Builder::Source from = b.any_source();
  const Map map = b.map(from.id);
  g->c = code.channels();
  LITESEG_CHECK(map.c == g->c, b.op(), map.dense ? "program" : "x",
                map.dense ? text("a map of ", g->c, " channels") : "the plan's number of channels", map.c);
  g->co = code.channels();
  g->kernel = code.word("a kernel", 1, kMostTaps);
  g->stride = code.word("a stride", 1, 8);
  g->padding = code.word("a padding", 0, 1 << 10);
  g->dilation = code.word("a dilation", 1, 1 << 16);
  g->pool = code.flag();
  g->activation = code.activation(&g->slope);
  read_shape(b, g.get(), from);
  g->oh = output_size(b.op(), "x", g->h, g->kernel, g->stride, g->padding, g->dilation);
  g->ow = output_size(b.op(), "x", g->w, g->kernel, g->stride, g->padding, g->dilation);
  const size_t to = b.add_pooled_map(g->n, g->co, g->oh, g->ow, g->pool);
  if (g->pool) {
    g->oh -= g->oh % 2;
    g->ow -= g->ow % 2;
  }
  add_stage(b, g, from, to, map.dense && g->kernel == 1 && g->stride == 1 && !g->pool, kNone);
}

void graph_convolution(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<ConvolutionArgs>();
  g->c = code.channels();
  g->co = code.channels();
  g->kernel = code.word("a kernel", 1, kMostTaps);
  g->stride = code.word("a stride", 1, kMostStride);
  g->dilation = code.word("a dilation", 1, 1 << 16);
  const Edges edges = b.edges();
  g->padding = edges.most();
  g->less_top = g->padding - edges.top;
  g->less_left = g->padding - edges.left;
  const int activation = code.any_activation(&g->slope);
  g->activation = kernels_activation(activation);
  const bool points = g->kernel == 1 && g->stride == 1 && g->padding == 0;
  const Builder::Source from = points ? b.dense_source() : b.any_source();
  b.check_channels(from.id, g->c);
  read_shape(b, g.get(), from);
  g->oh = padded_size(b, g->h, g->kernel, g->stride, g->dilation, edges.top + edges.bottom);
  g->ow = padded_size(b, g->w, g->kernel, g->stride, g->dilation, edges.left + edges.right);
  const size_t to = b.add_map(g->n, g->co, g->oh, g->ow);
  add_stage(b, g, from, to, points, activation == g->activation ? kNone : activation);
}

}  // namespace liteseg::cpu
