#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {

// 3x3, with a padding like the dilation; bytes in and out
void plan_int8_inverted_residual(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<Int8InvertedResidualArgs>();
  g->c = code.word("a number of channels", 1, kMostByteChannels);
  const ByteGrid in = b.grid();
  const size_t from = b.byte_source(g->c, in);
  g->hidden = code.word("a number of channels", 1, kMostByteChannels);
  g->co = code.channels();
  const ByteGrid out = b.grid();
  g->stride = code.word("a stride", 1, 8);
  g->dilation = code.word("a dilation", 1, 1 << 16);
  g->residual = code.flag();
  g->residual_scale = code.number();
  g->in_zero = in.zero;
  g->out_zero = out.zero;
  g->expand = b.byte_matrix(g->hidden, g->c);
  g->expand_bias = b.integers(g->hidden);
  g->expand_scale = b.bias(g->hidden);
  g->depthwise = b.byte_lanes(g->hidden, 3);
  g->depthwise_bias = b.byte_lanes(g->hidden, 1);
  g->depthwise_scale = reinterpret_cast<const float*>(b.byte_lanes(g->hidden, 1));
  g->project = b.byte_matrix(g->co, g->hidden);
  g->project_bias = b.integers(g->co);
  g->project_scale = b.bias(g->co);
  const Map map = b.map(from);
  g->n = map.n;
  g->h = map.h;
  g->w = map.w;
  g->oh = output_size(b.op(), "x", g->h, 3, g->stride, g->dilation, g->dilation);
  g->ow = output_size(b.op(), "x", g->w, 3, g->stride, g->dilation, g->dilation);
  LITESEG_CHECK(!g->residual || (g->co == g->c && g->oh == g->h && g->ow == g->w), b.op(), "program",
                "a residual of the output's shape", "another");
  const int64_t plane = g->oh * g->ow;
  g->tile = b.balanced(tile_pixels(div_up(g->hidden, 4), g->n * plane, 48, b.threads()), g->n, plane);
  const size_t to = b.add_byte_map(g->n, g->co, g->oh, g->ow, out);
  b.place([&b, g, from, to] {
    g->x = b.bytes_at(from);
    g->out = b.bytes_at(to);
  });
  const Int8InvertedResidualTable& table = LITESEG_CHOOSE_BYTES(int8_inverted_residual_table);
  b.stage(g->n * div_up(plane, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run(*g, begin, end, scratch, fresh);
          });
}

}  // namespace liteseg::cpu
