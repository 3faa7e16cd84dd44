#include "engine/plan/layers.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

void read_branch(Builder& b, Int8DasppArgs* g, int64_t index) {
  Program& code = b.code();
  const int64_t f = g->sums.filters;
  DasppBranch& after = g->sums.branches[index];
  Int8DasppBranch& branch = g->branches[index];
  after.rate = code.word("a rate", 0, 1 << 16);
  const bool deep = code.flag();
  LITESEG_CHECK(deep == (index > 0), b.op(), "program", "second convolutions in all branches but the first",
                "other ones");
  after.activation = kNone;
  branch.pointwise = b.byte_matrix(f, g->sums.channels);
  branch.bias = b.integers(f);
  branch.scale = b.bias(f);
  if (after.rate > 0) {
    branch.depthwise = b.byte_lanes(g->sums.channels, 3);
    branch.depthwise_bias = b.byte_lanes(g->sums.channels, 1);
    branch.depthwise_scale = reinterpret_cast<const float*>(b.byte_lanes(g->sums.channels, 1));
  }
  if (deep) {
    after.project = b.float_matrix(f, f);
    after.deep_depthwise = code.weight(9 * f);
    after.deep_pointwise = b.float_matrix(f, f);
    after.deep_bias = b.bias(f);
  }
}

}  // namespace

// the deeper pyramid, bytes in and out; behind the sums over the input channels it is that of floats
void plan_int8_daspp(Builder& b) {
  Program& code = b.code();
  auto g = std::make_shared<Int8DasppArgs>();
  SlicedDasppArgs& sums = g->sums;
  sums.channels = sums.c = code.word("a number of channels", 1, kMostByteChannels);
  const ByteGrid in = b.grid();
  LITESEG_CHECK(in.zero == 0, b.op(), "program", "the zero point 0 behind an activation", in.zero);
  g->scale = in.scale;
  const size_t from = b.byte_source(sums.channels, in);
  sums.filters = code.channels();
  const ByteGrid out = b.grid();
  sums.count = code.word("a number of branches", 2, kMaxBranches);
  for (int64_t i = 0; i < sums.count; ++i) {
    read_branch(b, g.get(), i);
  }
  const int64_t f = sums.filters;
  sums.pool = b.float_matrix(f, sums.channels);
  sums.pool_bias = b.bias(f);
  sums.pool_project = b.float_matrix(f, f);
  sums.project_bias = b.bias(f);
  const Map map = b.map(from);
  sums.n = map.n;
  sums.h = map.h;
  sums.w = map.w;
  const int64_t pixels = sums.h * sums.w;
  // fixed by the channels, not by the threads: the order of the sums of floats must not depend on those
  constexpr int64_t most_groups = 4;
  sums.group_channels = round_up(div_up(sums.channels, most_groups), kBytePixel);
  sums.groups = div_up(sums.channels, sums.group_channels);
  sums.tile = std::min(b.balanced(48, sums.n, pixels), pixels);
  const auto partial = b.temporary(sums.n * sums.groups * sums.count * pixels * f);
  const auto reduced = b.temporary(sums.n * sums.count * pixels * f);
  const auto pool_partial = b.temporary(sums.n * sums.groups * b.panels(f));
  const auto start = b.temporary(sums.n * b.panels(f));
  const auto numbers = b.temporary(sums.n * pixels * f);
  const size_t to = b.add_byte_map(sums.n, f, sums.h, sums.w, out);
  auto rounded = std::make_shared<ConvertArgs>();
  rounded->c = rounded->from_pixel = f;
  rounded->to_pixel = b.map(to).pixel * static_cast<int64_t>(sizeof(float));
  rounded->grid = out;
  rounded->half = false;
  b.place([&b, g, rounded, from, to, partial, reduced, pool_partial, start, numbers] {
    g->x = b.bytes_at(from);
    g->sums.partial = b.at(partial);
    g->sums.reduced = b.at(reduced);
    g->sums.pool_partial = b.at(pool_partial);
    g->sums.start = b.at(start);
    g->sums.out = b.at(numbers);
    rounded->from = b.at(numbers);
    rounded->to = b.at(to);
  });
  const Int8DasppTable& table = LITESEG_CHOOSE_BYTES(int8_daspp_table);
  const SlicedDasppTable& floats = LITESEG_CHOOSE(sliced_daspp_table);
  const ConvertTable& convert = LITESEG_CHOOSE_BYTES(convert_table);
  const int64_t scratch = floats.scratch_bytes(sums);
  b.stage(sums.n * sums.groups, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.sum(*g, begin, end, memory); });
  b.stage(sums.n * (sums.count + 1), scratch,
          [g, &floats](int64_t begin, int64_t end, char* memory, bool) { floats.reduce(g->sums, begin, end, memory); });
  b.stage(sums.n * div_up(pixels, sums.tile), scratch,
          [g, rounded, pixels, &floats, &convert](int64_t begin, int64_t end, char* memory, bool) {
            floats.project(g->sums, begin, end, memory);
            // the pixels of these tiles, while they are in cache
            const int64_t tiles = div_up(pixels, g->sums.tile);
            for (int64_t item = begin; item < end; ++item) {
              const int64_t first = item / tiles * pixels;
              const int64_t p0 = first + item % tiles * g->sums.tile;
              convert.quantise(*rounded, p0, std::min(p0 + g->sums.tile, first + pixels));
            }
          });
}

}  // namespace liteseg::cpu
