// From a program to the stages of one call. The layers (layers.h) read their words here, add the maps they make and the
// stages that compute them; nothing is kept between calls. Shapes, the arena's layout and the split over threads are
// worked out at each call, which takes microseconds.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/blocks/dense_conv.h"
#include "engine/kernels/bf16/tables.h"
#include "engine/kernels/graph.h"
#include "engine/kernels/int8/tables.h"
#include "engine/plan/memory.h"
#include "engine/plan/reader.h"
#include "engine/resample.h"
#include "engine/runtime/team.h"

namespace liteseg::cpu {

// a map of the caller: [N, C, H, W] of float, or of bf16 for a bfloat16 plan
struct Input {
  const void* data;
  int64_t n, c, h, w;
  Strides4 strides;
};

// What a call makes: a map [n, c, h, w], dense, planar or with channels innermost, or labels [n, h, w].
struct Result {
  enum Type { kFloats, kBf16, kBytes, kInt64 };
  Type type;
  int64_t n, c, h, w;
  bool channels_last;
  void* data;  // set by the caller before `execute`

  bool is_labels() const {
    return type == kBytes || type == kInt64;
  }
  Strides4 strides() const;
};

// channels innermost, dense
inline Strides4 innermost(int64_t c, int64_t h, int64_t w) {
  return {h * w * c, 1, w * c, c};
}

// a feature map [n, h, w, c]
struct Map {
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t pixel = 0;            // floats of memory: c, or whole vectors of bf16 or of bytes
  bool stored = true;           // in the arena, else in memory of the caller: `input` or `result`
  int64_t offset = -1;          // floats into the arena
  const void* input = nullptr;  // data of an input
  int64_t result = -1;          // or the place of a result
  bool dense = true;            // channels innermost; if not, only some layers read it in its own order
  Strides4 strides{};
  int64_t first = -1, last = -1;  // layers that the map's memory lives for
  int64_t reads = 0;
  bool any_order = false;  // made by a kernel that can write at any strides
  bool scores = false;     // float, in a bfloat16 plan
  bool bytes = false;      // of the int8 layers, on `grid`
  ByteGrid grid{};

  int64_t floats() const {
    return n * pixel * h * w;
  }
};

// zero rows and columns around a map
struct Edges {
  int64_t top, bottom, left, right;
  int64_t most() const {
    return std::max({top, bottom, left, right});
  }
};

class Builder {
 public:
  // bf16: tables of a bfloat16 plan, else null. Inputs and threads outlive the builder.
  Builder(const char* op, const std::vector<Input>& inputs, const std::vector<int64_t>& sizes, const Program& program,
          const Threads& threads, const Bf16Tables* bf16);
  // stages hold pointers to it
  Builder(const Builder&) = delete;
  Builder& operator=(const Builder&) = delete;

  // -- the program

  const char* op() const {
    return op_;
  }
  Program& code() {
    return code_;
  }
  const Bf16Tables* bf16_tables() const {
    return bf16_;
  }
  const std::vector<Input>& inputs() const {
    return inputs_;
  }
  int64_t layer() const {
    return layer_;
  }
  // reads the panel that weights are packed for
  void check_panel();
  void next_layer() {
    ++layer_;
  }
  // floats that columns take in packed weights
  int64_t panels(int64_t columns) const {
    return round_up(columns, panel_);
  }
  int64_t panel() const {
    return panel_;
  }
  // `stretches` of the rows each start in a word of their own, where a word is two bf16
  const float* matrix(int64_t columns, int64_t rows, int64_t stretches = 1);
  const float* bias(int64_t columns);
  // depthwise weights of a map that the layer itself makes
  const float* inner_depthwise(int64_t channels);
  // of floats in any plan
  const float* float_matrix(int64_t columns, int64_t rows) {
    return code_.weight(panels(columns) * rows);
  }
  // words of int8 in panels, and what a kernel of them has for each column
  const uint32_t* byte_matrix(int64_t columns, int64_t rows);
  const uint32_t* integers(int64_t columns);
  // the same for the channels of a depthwise convolution of bytes: words of each column of the kernel, or one value
  const uint32_t* byte_lanes(int64_t channels, int64_t columns);
  ByteGrid grid();
  Edges edges();
  // the size that the caller gives for a dimension
  int64_t size_argument();

  // -- maps

  // A map that this layer reads: of those made before. In any order of memory, with channels innermost, or inside the
  // network, with channels innermost and `c` of them.
  struct Source {
    size_t id;
    Strides4 strides;
    const float* data;  // of an input in another order, else null: where the map lies
  };
  Source any_source();
  Source dense_source();
  size_t source() {
    return dense_source().id;
  }
  size_t inner_source(int64_t c);
  // a map of bytes with `c` channels on this grid
  size_t byte_source(int64_t c, const ByteGrid& grid);
  void check_channels(size_t map, int64_t c) const;
  void check_inner(size_t map, int64_t c) const;

  size_t add_map(int64_t n, int64_t c, int64_t h, int64_t w);
  size_t add_byte_map(int64_t n, int64_t c, int64_t h, int64_t w, const ByteGrid& grid);
  // after an optional 2x2 pool of stride 2
  size_t add_pooled_map(int64_t n, int64_t c, int64_t h, int64_t w, bool pool);
  Map& map(size_t id) {
    return maps_[id];
  }
  const Map& map(size_t id) const {
    return maps_[id];
  }
  size_t map_count() const {
    return maps_.size();
  }
  // some map has no pixel, and nothing is computed
  bool empty() const {
    return empty_;
  }
  // floats that live for this layer alone
  std::shared_ptr<int64_t> temporary(int64_t floats);
  // positions of a bilinear resize, kept until the end of the call
  AxisView axis(int64_t in, int64_t out, bool align_corners);
  // a map of some pixels for each thread, see balanced_tile
  int64_t balanced(int64_t tile, int64_t images, int64_t plane) const {
    return balanced_tile(tile, images, plane, threads_.count());
  }
  int64_t threads() const {
    return threads_.count();
  }

  // -- stages

  // called when all memory is known, before the first stage
  void place(std::function<void()> set) {
    places_.push_back(std::move(set));
  }
  void stage(int64_t items, int64_t scratch_bytes, std::function<void(int64_t, int64_t, char*, bool)> run);
  void copy_stage(const std::shared_ptr<CopyArgs>& args, int64_t n);
  // when places are set
  float* at(size_t map) const;
  const float* at(const Source& source) const {
    return source.data != nullptr ? source.data : at(source.id);
  }
  bf16* bf16_at(size_t map) const {
    return reinterpret_cast<bf16*>(at(map));
  }
  uint8_t* bytes_at(size_t map) const {
    return reinterpret_cast<uint8_t*>(at(map));
  }
  float* at(const std::shared_ptr<int64_t>& offset) const {
    return base_ + *offset;
  }

  // -- results

  // a map as it is: written straight into the caller's memory where its kernel can, else copied
  void add_result(size_t map, Result::Type type, bool channels_last);
  // the best class of every pixel of a map, resized where the size is another
  void add_labels(size_t map, Result::Type type, int64_t h, int64_t w, bool align_corners);
  std::vector<Result>& results() {
    return results_;
  }
  // bytes of maps and scratch beyond which `execute` throws MemoryLimit; 0 for none
  void limit_memory(int64_t bytes) {
    memory_limit_ = bytes;
  }
  // seconds, where given, gets the time of each layer, and after them what the results add
  void execute(std::vector<double>* seconds);

 private:
  size_t read_map();
  void make_dense(size_t map);
  int64_t allocate();
  void check_scratch(int64_t bytes_of_maps) const;

  const char* op_;
  const std::vector<Input>& inputs_;
  const std::vector<int64_t>& sizes_;
  Program code_;
  const Threads& threads_;
  const Bf16Tables* bf16_;
  int64_t panel_;
  int64_t layer_ = 0;
  bool empty_ = false;
  float* base_ = nullptr;
  int64_t memory_limit_ = 0;
  std::vector<Map> maps_;
  std::vector<Result> results_;
  std::vector<Block> temporaries_;
  std::vector<std::function<void()>> places_;
  std::vector<Stage> stages_;
  std::vector<int64_t> layer_of_stage_;
  std::vector<std::shared_ptr<Axis>> axes_;
};

// the size of a convolution's output; `padding` on both sides together
int64_t padded_size(const Builder& b, int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding);

// smooth activations are applied by a kernel of their own, after a layer whose kernels do not know them
inline int kernels_activation(int activation) {
  return activation <= kLastOfOps ? activation : kNone;
}

}  // namespace liteseg::cpu
