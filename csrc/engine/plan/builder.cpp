#include "engine/plan/builder.h"

#include <limits>

#include "engine/kernels/pack.h"
#include "engine/kernels/upsample_argmax.h"
#include "engine/plan/program.h"
#include "engine/runtime/arena.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

constexpr int64_t kMostSide = int64_t{1} << 24;
constexpr int64_t kMostPixels = int64_t{1} << 32;
constexpr int64_t kMostBytes = int64_t{1} << 44;

}  // namespace

Strides4 Result::strides() const {
  // a planar map of one pixel is spelled as the same memory with channels innermost
  return channels_last || h * w == 1 ? innermost(c, h, w) : Strides4{c * h * w, h * w, w, 1};
}

Builder::Builder(const char* op, const std::vector<Input>& inputs, const std::vector<int64_t>& sizes,
                 const Program& program, const Threads& threads, const Bf16Tables* bf16)
    : op_(op),
      inputs_(inputs),
      sizes_(sizes),
      code_(program),
      threads_(threads),
      bf16_(bf16),
      panel_(LITESEG_CHOOSE(pack_table).panel) {}

void Builder::check_panel() {
  const int64_t panel = code_.word();
  LITESEG_CHECK(panel == panel_, op_, "program", text("weights packed for panels of ", panel_), panel);
}

const float* Builder::matrix(int64_t columns, int64_t rows, int64_t stretches) {
  return code_.weight(panels(columns) * (bf16_ == nullptr ? rows : stretches * div_up(rows / stretches, 2)));
}

const float* Builder::bias(int64_t columns) {
  return code_.weight(panels(columns));
}

const float* Builder::inner_depthwise(int64_t channels) {
  constexpr int64_t words = 8 * 3;  // of pair rows
  return code_.weight(bf16_ == nullptr ? 9 * channels : words * round_up(channels, kWidestVector));
}

const uint32_t* Builder::byte_matrix(int64_t columns, int64_t rows) {
  return reinterpret_cast<const uint32_t*>(code_.weight(panels(columns) * div_up(rows, 4)));
}

const uint32_t* Builder::integers(int64_t columns) {
  return reinterpret_cast<const uint32_t*>(bias(columns));
}

const uint32_t* Builder::byte_lanes(int64_t channels, int64_t columns) {
  return reinterpret_cast<const uint32_t*>(code_.weight(columns * round_up(channels, kBytePixel)));
}

ByteGrid Builder::grid() {
  ByteGrid grid{};
  grid.scale = code_.number();
  LITESEG_CHECK(grid.scale > 0.0f && grid.scale <= std::numeric_limits<float>::max(), op_, "program", "a scale above 0",
                grid.scale);
  grid.zero = static_cast<int32_t>(code_.word("a zero point", 0, 255));
  return grid;
}

Edges Builder::edges() {
  Edges e{};
  e.top = code_.word("a padding", 0, 1 << 16);
  e.bottom = code_.word("a padding", 0, 1 << 16);
  e.left = code_.word("a padding", 0, 1 << 16);
  e.right = code_.word("a padding", 0, 1 << 16);
  return e;
}

int64_t Builder::size_argument() {
  const int64_t index = code_.word("a place in sizes", 0, static_cast<int64_t>(sizes_.size()) - 1);
  const int64_t size = sizes_[static_cast<size_t>(index)];
  LITESEG_CHECK(size > 0, op_, "sizes", "at least 1", size);
  return size;
}

size_t Builder::read_map() {
  const size_t id = static_cast<size_t>(code_.word("a map", 0, static_cast<int64_t>(maps_.size()) - 1));
  Map& map = maps_[id];
  LITESEG_CHECK(!map.scores, op_, "program", "nothing that reads the scores", text("layer ", layer_));
  map.last = layer_;
  ++map.reads;
  return id;
}

Builder::Source Builder::any_source() {
  const size_t id = read_map();
  const Map& map = maps_[id];
  LITESEG_CHECK(!map.bytes, op_, "program", "a map of numbers", text("one of bytes in layer ", layer_));
  if (map.dense) {
    return {id, innermost(map.c, map.h, map.w), nullptr};
  }
  return {id, map.strides, static_cast<const float*>(map.input)};
}

Builder::Source Builder::dense_source() {
  const size_t id = any_source().id;
  make_dense(id);
  return {id, innermost(maps_[id].c, maps_[id].h, maps_[id].w), nullptr};
}

size_t Builder::inner_source(int64_t c) {
  const size_t id = any_source().id;
  check_inner(id, c);
  return id;
}

size_t Builder::byte_source(int64_t c, const ByteGrid& grid) {
  const size_t id = read_map();
  const Map& map = maps_[id];
  LITESEG_CHECK(map.bytes && map.grid.scale == grid.scale && map.grid.zero == grid.zero, op_, "program",
                "a map of bytes of this scale and zero point", text("another in layer ", layer_));
  check_inner(id, c);
  return id;
}

void Builder::check_channels(size_t map, int64_t c) const {
  LITESEG_CHECK(maps_[map].c == c, op_, "program", text("a map of ", c, " channels"), maps_[map].c);
}

void Builder::check_inner(size_t map, int64_t c) const {
  LITESEG_CHECK(maps_[map].dense && maps_[map].c == c, op_, "program", text("a map of ", c, " channels"), maps_[map].c);
}

// a copy of an input in another order, from this layer on
void Builder::make_dense(size_t id) {
  Map& map = maps_[id];
  if (map.dense) {
    return;
  }
  auto g = std::make_shared<CopyArgs>();
  g->from = static_cast<const float*>(map.input);
  g->fs = map.strides;
  g->ts = innermost(map.c, map.h, map.w);
  g->c = map.c;
  g->h = g->oh = map.h;
  g->w = g->ow = map.w;
  map.dense = true;
  map.stored = true;
  map.first = layer_;
  place([this, g, id] { g->to = at(id); });
  copy_stage(g, map.n);
}

size_t Builder::add_map(int64_t n, int64_t c, int64_t h, int64_t w) {
  Map map;
  map.n = n;
  map.c = c;
  map.h = h;
  map.w = w;
  map.pixel = bf16_ == nullptr ? c : round_up(c, kWidestVector) / 2;
  map.first = map.last = layer_;
  // beyond any picture, and far from where products of sizes no longer fit into 64 bits
  LITESEG_CHECK(h <= kMostSide && w <= kMostSide && n * h <= kMostPixels / std::max<int64_t>(w, 1), op_, "x",
                text("maps of at most ", kMostPixels, " pixels"), text(n, "x", h, "x", w));
  maps_.push_back(map);
  empty_ = empty_ || map.floats() == 0;
  return maps_.size() - 1;
}

size_t Builder::add_byte_map(int64_t n, int64_t c, int64_t h, int64_t w, const ByteGrid& grid) {
  const size_t id = add_map(n, c, h, w);
  Map& map = maps_[id];
  map.pixel = round_up(c, kBytePixel) / static_cast<int64_t>(sizeof(float));
  map.bytes = true;
  map.grid = grid;
  return id;
}

size_t Builder::add_pooled_map(int64_t n, int64_t c, int64_t h, int64_t w, bool pool) {
  const int64_t step = pool ? 2 : 1;
  LITESEG_CHECK(h >= step && w >= step, op_, "x", "enough rows and columns for every pool", text(h, "x", w));
  return add_map(n, c, h / step, w / step);
}

std::shared_ptr<int64_t> Builder::temporary(int64_t floats) {
  auto offset = std::make_shared<int64_t>(-1);
  temporaries_.push_back({floats, layer_, layer_, offset.get()});
  return offset;
}

AxisView Builder::axis(int64_t in, int64_t out, bool align_corners) {
  axes_.push_back(std::make_shared<Axis>(in, out, align_corners));
  return axes_.back()->view();
}

void Builder::stage(int64_t items, int64_t scratch_bytes, std::function<void(int64_t, int64_t, char*, bool)> run) {
  stages_.push_back({items, scratch_bytes, std::move(run)});
  layer_of_stage_.push_back(layer_);
}

void Builder::copy_stage(const std::shared_ptr<CopyArgs>& args, int64_t n) {
  const GraphTable& table = LITESEG_CHOOSE(graph_table);
  stage(n * args->oh, 0, [args, &table](int64_t begin, int64_t end, char*, bool) { table.copy(*args, begin, end); });
}

float* Builder::at(size_t id) const {
  const Map& map = maps_[id];
  if (map.stored) {
    return base_ + map.offset;
  }
  // kernels never write to what they read
  return static_cast<float*>(map.result < 0 ? const_cast<void*>(map.input)
                                            : results_[static_cast<size_t>(map.result)].data);
}

void Builder::add_result(size_t id, Result::Type type, bool channels_last) {
  make_dense(id);
  Map& map = maps_[id];
  const size_t place_of_result = results_.size();
  results_.push_back({type, map.n, map.c, map.h, map.w, channels_last, nullptr});
  const Strides4 strides = results_.back().strides();
  const bool dense = strides.c == 1 || map.c == 1;
  if (map.stored && map.first < layer_ && (dense || (map.any_order && map.reads == 0))) {
    map.stored = false;
    map.result = static_cast<int64_t>(place_of_result);
    if (map.any_order && !dense) {
      map.strides = strides;
    }
    // no other result may take this memory for its own
    map.reads += 1;
    map.any_order = false;
    return;
  }
  map.last = layer_;
  auto g = std::make_shared<CopyArgs>();
  g->fs = map.result >= 0 && map.strides.c > 1 ? map.strides : innermost(map.c, map.h, map.w);
  g->ts = strides;
  g->c = map.c;
  g->h = g->oh = map.h;
  g->w = g->ow = map.w;
  place([this, g, id, place_of_result] {
    g->from = at(id);
    g->to = static_cast<float*>(results_[place_of_result].data);
  });
  copy_stage(g, map.n);
}

void Builder::add_labels(size_t id, Result::Type type, int64_t h, int64_t w, bool align_corners) {
  make_dense(id);
  Map& map = maps_[id];
  LITESEG_CHECK(map.c <= kMostClasses, op_, "program", text("1 to ", kMostClasses, " classes"), map.c);
  map.last = layer_;
  ++map.reads;
  const size_t result = results_.size();
  results_.push_back({type, map.n, 0, h, w, false, nullptr});
  if (empty_) {
    return;
  }
  auto g = std::make_shared<UpsampleArgmaxArgs>();
  g->k = map.c;
  g->h = map.h;
  g->w = map.w;
  g->oh = h;
  g->ow = w;
  g->ls = innermost(map.c, map.h, map.w);
  g->y = axis(map.h, h, align_corners);
  g->x = axis(map.w, w, align_corners);
  const UpsampleArgmaxTable& table = LITESEG_CHOOSE(upsample_argmax_float_table);
  if (type == Result::kBytes) {
    place([this, g, id, result] {
      g->logits = at(id);
      g->out = static_cast<uint8_t*>(results_[result].data);
    });
    stage(map.n * h, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run[kFloat](*g, begin, end, scratch); });
    return;
  }
  const auto bytes = temporary(div_up(map.n * h * w, 4));
  const auto wide = std::make_shared<int64_t*>();
  place([this, g, id, result, bytes, wide] {
    g->logits = at(id);
    g->out = reinterpret_cast<uint8_t*>(at(bytes));
    *wide = static_cast<int64_t*>(results_[result].data);
  });
  stage(map.n * h, table.scratch_bytes(*g), [g, wide, &table](int64_t begin, int64_t end, char* scratch, bool) {
    table.run[kFloat](*g, begin, end, scratch);
    for (int64_t i = begin * g->ow; i < end * g->ow; ++i) {
      (*wide)[i] = g->out[i];
    }
  });
}

// offsets of all maps and temporaries; returns the floats needed
int64_t Builder::allocate() {
  std::vector<Block> blocks;
  for (Map& map : maps_) {
    if (map.stored) {
      blocks.push_back({map.floats(), map.first, map.last, &map.offset});
    }
  }
  blocks.insert(blocks.end(), temporaries_.begin(), temporaries_.end());
  for (const Block& block : blocks) {
    LITESEG_CHECK(block.floats >= 0 && block.floats <= kMostBytes / static_cast<int64_t>(sizeof(float)), op_, "x",
                  text("maps of less than ", kMostBytes, " bytes"), block.floats);
  }
  const int64_t total = place_blocks(blocks);
  for (const Block& block : blocks) {
    const int64_t end = *block.offset + block.floats;
    if (kGuarded) {
      place([this, end] { forbid(base_ + end - kFence, kFenceBytes); });
    }
  }
  return total;
}

void Builder::check_scratch(int64_t bytes_of_maps) const {
  int64_t scratch = 0;
  for (const Stage& stage : stages_) {
    scratch = std::max(scratch, stage.scratch_bytes);
  }
  LITESEG_CHECK(scratch <= kMostBytes, op_, "x", text("layers with rows of less than ", kMostBytes, " bytes"), scratch);
  check_memory(op_, bytes_of_maps + scratch * threads_.count(), memory_limit_);
}

void Builder::execute(std::vector<double>* seconds) {
  if (seconds != nullptr) {
    seconds->assign(static_cast<size_t>(layer_) + 1, 0.0);
  }
  if (empty_) {
    return;
  }
  const int64_t bytes = allocate() * static_cast<int64_t>(sizeof(float));
  check_scratch(bytes);
  base_ = reinterpret_cast<float*>(arena(bytes));
  for (const auto& set : places_) {
    set();
  }
  std::vector<double> of_stages;
  run_stages(stages_, threads_, seconds == nullptr ? nullptr : &of_stages);
  for (size_t i = 0; i < of_stages.size(); ++i) {
    (*seconds)[static_cast<size_t>(layer_of_stage_[i])] += of_stages[i];
  }
}

int64_t padded_size(const Builder& b, int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  const int64_t room = size + padding - dilation * (kernel - 1) - 1;
  LITESEG_CHECK(room >= 0, b.op(), "inputs", text("at least ", dilation * (kernel - 1) + 1, " with the padding"),
                size + padding);
  return room / stride + 1;
}

}  // namespace liteseg::cpu
