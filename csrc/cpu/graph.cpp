// Registration of liteseg_cpu::run_graph: a part of any network, from one program and one tensor of packed weights.
//
// Like run_plan, but the layers are those that networks in general are made of, and any number of maps comes in and
// goes out. The program is written by liteseg_kernels/compiler; layer i makes map i. The op keeps no state: shapes, the
// arena's layout and the split over threads are worked out at each call.
#include <functional>
#include <memory>

#include "cpu/arena.h"
#include "cpu/geometry.h"
#include "cpu/graph.h"
#include "cpu/inverted_residual.h"
#include "cpu/isa.h"
#include "cpu/pack_table.h"
#include "cpu/plan_convolution.h"
#include "cpu/plan_stem.h"
#include "cpu/plan_winograd.h"
#include "cpu/program.h"
#include "cpu/resample.h"
#include "cpu/team.h"
#include "cpu/tensors.h"
#include "cpu/upsample_argmax.h"
#include "cpu/upsample_concat.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "run_graph";
constexpr int64_t kVersion = 1;
constexpr int64_t kLargestKernel = 31;

enum Kind : int64_t {
  kInput = 1,
  kConvolution = 2,
  kWinograd = 3,
  kBlock = 4,
  kDepthwise = 5,
  kStem = 6,
  kWindow = 7,
  kCombine = 8,
  kMean = 9,
  kConcat = 10,
  kResize = 11,
  kNearest = 12,
  kPad = 13,
  kActivate = 14,
};

enum Format : int64_t { kPlanar = 0, kInnermost = 1, kLabels = 2 };

// a feature map [N, h, w, c]
struct Map {
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t offset = -1;  // floats into the arena
  int64_t first = -1, last = -1;
  int64_t reads = 0;
  bool stored = true;             // in the arena
  float* outside = nullptr;       // else: a caller's or a result's memory
  Strides4 strides{};             // of an input that is not dense, or of a result in another order
  const Tensor* input = nullptr;  // not dense yet
  bool resized = false;           // made by a kernel that can write any order

  int64_t floats() const {
    return n * c * h * w;
  }
};

Strides4 innermost(int64_t c, int64_t h, int64_t w) {
  return {h * w * c, 1, w * c, c};
}

bool is_innermost(const Tensor& t) {
  const int64_t c = t.size(1);
  const int64_t h = t.size(2);
  const int64_t w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

class Run {
 public:
  Run(const std::vector<Tensor>& inputs, const Tensor& packed, const Tensor& program, const std::vector<int64_t>& sizes)
      : inputs_(inputs), sizes_(sizes), code_(kOp, program, packed), panel_(LITESEG_CHOOSE(pack_table).panel) {
    LITESEG_CHECK(code_.word() == kVersion, kOp, "program", text("version ", kVersion), "another one");
    const int64_t panel = code_.word();
    LITESEG_CHECK(panel == panel_, kOp, "program", text("weights packed for panels of ", panel_), panel);
    const int64_t layers = code_.word("a number of layers", 1, 100000);
    // layers keep no pointers into it, but a map that grows the vector is often made from another one
    maps_.reserve(static_cast<size_t>(layers));
    for (int64_t i = 0; i < layers; ++i) {
      layer();
      LITESEG_CHECK(static_cast<int64_t>(maps_.size()) == i + 1, kOp, "program", "a map a layer", "another number");
      ++layer_;
    }
    const int64_t outputs = code_.word("a number of results", 1, layers);
    for (int64_t i = 0; i < outputs; ++i) {
      output();
    }
    LITESEG_CHECK(code_.done(), kOp, "program", "no words after the results", "some");
  }

  std::vector<Tensor> execute(std::vector<double>* seconds) {
    if (!empty_) {
      base_ = reinterpret_cast<float*>(arena(allocate() * static_cast<int64_t>(sizeof(float))));
      for (const auto& place : places_) {
        place();
      }
      std::vector<double> of_stages;
      run_stages(stages_, seconds == nullptr ? nullptr : &of_stages);
      if (seconds != nullptr) {
        seconds->assign(static_cast<size_t>(layer_) + 1, 0.0);
        for (size_t i = 0; i < of_stages.size(); ++i) {
          (*seconds)[static_cast<size_t>(layer_of_stage_[i])] += of_stages[i];
        }
      }
    } else if (seconds != nullptr) {
      seconds->assign(static_cast<size_t>(layer_) + 1, 0.0);
    }
    return results_;
  }

 private:
  int64_t panels(int64_t columns) const {
    return round_up(columns, panel_);
  }
  const float* matrix(int64_t columns, int64_t rows) {
    return code_.weight(panels(columns) * rows);
  }
  const float* bias(int64_t columns) {
    return code_.weight(panels(columns));
  }

  // a map to be read by this layer, in whatever order it lies
  size_t any_source() {
    const size_t id = static_cast<size_t>(code_.word("a map", 0, static_cast<int64_t>(maps_.size()) - 1));
    maps_[id].last = layer_;
    ++maps_[id].reads;
    return id;
  }
  // channels innermost
  size_t source() {
    const size_t id = any_source();
    if (maps_[id].input != nullptr) {
      make_dense(id);
    }
    return id;
  }
  void make_dense(size_t id) {
    Map& map = maps_[id];
    auto g = std::make_shared<CopyArgs>();
    *g = {static_cast<const float*>(read_of(*map.input)),
          map.strides,
          nullptr,
          innermost(map.c, map.h, map.w),
          map.c,
          map.h,
          map.w,
          map.h,
          map.w,
          0,
          0,
          nullptr,
          nullptr};
    map.input = nullptr;
    map.stored = true;
    map.first = layer_;
    places_.push_back([this, g, id] { g->to = at(id); });
    copy_stage(g, map.n);
  }
  void copy_stage(const std::shared_ptr<CopyArgs>& g, int64_t n) {
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    stage(n * g->oh, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.copy(*g, begin, end); });
  }
  size_t add_map(int64_t n, int64_t c, int64_t h, int64_t w) {
    Map map;
    map.n = n;
    map.c = c;
    map.h = h;
    map.w = w;
    map.first = map.last = layer_;
    maps_.push_back(map);
    empty_ = empty_ || map.floats() == 0;
    return maps_.size() - 1;
  }
  float* at(size_t map) const {
    return maps_[map].stored ? base_ + maps_[map].offset : maps_[map].outside;
  }
  float* at(const std::shared_ptr<int64_t>& offset) const {
    return base_ + *offset;
  }
  std::shared_ptr<int64_t> temporary(int64_t floats) {
    auto offset = std::make_shared<int64_t>(-1);
    temporaries_.push_back({floats, layer_, layer_, offset.get()});
    return offset;
  }
  void stage(int64_t items, int64_t scratch_bytes, std::function<void(int64_t, int64_t, char*, bool)> run) {
    stages_.push_back({items, scratch_bytes, std::move(run)});
    layer_of_stage_.push_back(layer_);
  }
  int64_t size_argument() {
    const int64_t index = code_.word("a place in sizes", 0, static_cast<int64_t>(sizes_.size()) - 1);
    const int64_t size = sizes_[static_cast<size_t>(index)];
    LITESEG_CHECK(size > 0, kOp, "sizes", "at least 1", size);
    return size;
  }
  void expect_channels(size_t map, int64_t c) {
    LITESEG_CHECK(maps_[map].c == c, kOp, "program", text("a map of ", c, " channels"), maps_[map].c);
  }
  int activation(float* slope) {
    return code_.activation(slope, kSigmoid);
  }

  void layer() {
    switch (code_.word()) {
      case kInput:
        return input();
      case kConvolution:
        return convolution();
      case kWinograd:
        return winograd();
      case kBlock:
        return block();
      case kDepthwise:
        return depthwise();
      case kStem:
        return stem();
      case kWindow:
        return window();
      case kCombine:
        return combine();
      case kMean:
        return mean();
      case kConcat:
        return concat();
      case kResize:
        return resize();
      case kNearest:
        return nearest();
      case kPad:
        return pad();
      case kActivate:
        return activate();
      default:
        LITESEG_CHECK(false, kOp, "program", "a known layer", "another one");
    }
  }

  void input() {
    const size_t index = static_cast<size_t>(code_.word("an input", 0, static_cast<int64_t>(inputs_.size()) - 1));
    const Tensor& x = inputs_[index];
    check_4d(kOp, "inputs", x);
    LITESEG_CHECK(x.scalar_type() == ScalarType::Float, kOp, "inputs", "float32", dtype_text(x.scalar_type()));
    const int64_t c = code_.channels();
    LITESEG_CHECK(x.size(1) == c, kOp, "inputs", text(c, " channels"), x.size(1));
    const size_t id = add_map(x.size(0), c, x.size(2), x.size(3));
    Map& map = maps_[id];
    map.stored = false;
    if (is_innermost(x)) {
      // kernels never write to what they read
      map.outside = static_cast<float*>(const_cast<void*>(read_of(x)));
    } else {
      map.input = &x;
      map.strides = strides_of(x);
    }
  }

  void convolution() {
    auto g = std::make_shared<ConvolutionArgs>();
    g->c = code_.channels();
    g->co = code_.channels();
    g->kernel = code_.word("a kernel", 1, kMostTaps);
    g->stride = code_.word("a stride", 1, 64);
    g->dilation = code_.word("a dilation", 1, 1 << 16);
    const Edges edges = padding();
    g->padding = std::max({edges.top, edges.bottom, edges.left, edges.right});
    g->less_top = g->padding - edges.top;
    g->less_left = g->padding - edges.left;
    const int act = activation(&g->slope);
    const bool points = g->kernel == 1 && g->stride == 1 && g->padding == 0;
    const size_t from = points ? source() : any_source();
    expect_channels(from, g->c);
    g->weight = matrix(g->co, g->kernel * g->kernel * g->c);
    g->bias = bias(g->co);
    const Map map = maps_[from];
    g->n = map.n;
    g->h = map.h;
    g->w = map.w;
    g->oh = padded_size(g->h, g->kernel, g->stride, g->dilation, edges.top + edges.bottom);
    g->ow = padded_size(g->w, g->kernel, g->stride, g->dilation, edges.left + edges.right);
    g->xs = map.input != nullptr ? map.strides : innermost(map.c, map.h, map.w);
    // a smooth activation follows on what a thread has just written
    g->activation = act <= kLeakyRelu ? act : kNone;
    const int after = act <= kLeakyRelu ? kNone : act;
    const size_t to = add_map(g->n, g->co, g->oh, g->ow);
    const float* outside = map.input != nullptr ? static_cast<const float*>(read_of(*map.input)) : nullptr;
    places_.push_back([this, g, from, to, outside] {
      g->x = outside != nullptr ? outside : at(from);
      g->out = at(to);
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
      g->tile = balanced_tile(96, 1, pixels);
      stage(div_up(pixels, g->tile), 0, [g, finish, pixels, &table](int64_t begin, int64_t end, char*, bool) {
        table.points(*g, begin, end);
        finish(begin * g->tile, std::min(end * g->tile, pixels));
      });
      return;
    }
    stage(g->n * g->oh, table.scratch_bytes(*g),
          [g, finish, &table](int64_t begin, int64_t end, char* memory, bool fresh) {
            table.rows(*g, begin, end, memory, fresh);
            finish(begin * g->ow, end * g->ow);
          });
  }

  void winograd() {
    auto g = std::make_shared<WinogradArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    expect_channels(from, g->c);
    g->co = code_.channels();
    g->padding = code_.word("a padding", 0, 1 << 10);
    g->dilation = code_.word("a dilation", 1, 1 << 16);
    g->output = 2 * code_.word("a tile of 2 or 4 outputs", 1, 2);
    const int act = activation(&g->slope);
    g->activation = act <= kLeakyRelu ? act : kNone;
    const int64_t taps = (g->output + 2) * (g->output + 2);
    g->weight = matrix(g->co, taps * g->c);
    g->bias = bias(g->co);
    g->n = map.n;
    g->h = map.h;
    g->w = map.w;
    g->oh = output_size(kOp, "height", g->h, 3, 1, g->padding, g->dilation);
    g->ow = output_size(kOp, "width", g->w, 3, 1, g->padding, g->dilation);
    const size_t to = add_map(g->n, g->co, g->oh, g->ow);
    g->grid_rows = std::min(g->dilation, g->oh);
    g->grid_columns = std::min(g->dilation, g->ow);
    g->rows = div_up(div_up(g->oh, g->dilation), g->output);
    g->columns = div_up(div_up(g->ow, g->dilation), g->output);
    const int64_t tiles = g->n * g->grid_rows * g->grid_columns * g->rows * g->columns;
    const WinogradTable& table = LITESEG_CHOOSE(winograd_table);
    // most of the second level of cache, and whole blocks of the product
    constexpr int64_t floats = 163840;
    constexpr int64_t step = 24;
    g->block = std::max(step, floats / (table.v_floats(*g) + table.m_floats(*g, 1)) / step * step);
    g->block = balanced_tile(g->block, 1, tiles);
    g->count = tiles;
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    stage(div_up(tiles, g->block), table.run_scratch(*g),
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.run(*g, begin, end, memory); });
    if (act > kLeakyRelu) {
      activate_stage(to, to, act, 0.0f);
    }
  }

  void block() {
    auto g = std::make_shared<InvertedResidualArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    expect_channels(from, g->c);
    const bool expands = code_.flag();
    g->hidden = code_.channels();
    LITESEG_CHECK(expands || g->hidden == g->c, kOp, "program", text(g->c, " hidden channels"), g->hidden);
    g->co = code_.channels();
    g->kh = code_.word("a kernel", 1, kLargestKernel);
    g->kw = code_.word("a kernel", 1, kLargestKernel);
    g->sh = code_.word("a stride", 1, 64);
    g->sw = code_.word("a stride", 1, 64);
    g->dh = code_.word("a dilation", 1, 1 << 16);
    g->dw = code_.word("a dilation", 1, 1 << 16);
    const Edges edges = padding();
    g->ph = edges.top;
    g->pw = edges.left;
    g->activation = activation(&g->slope);
    g->out_activation = activation(&g->out_slope);
    g->residual = code_.flag();
    if (expands) {
      g->expand = matrix(g->hidden, g->c);
      g->expand_bias = bias(g->hidden);
    }
    g->depthwise = code_.weight(g->kh * g->kw * g->hidden);
    g->depthwise_bias = bias(g->hidden);
    g->project = matrix(g->co, g->hidden);
    g->project_bias = bias(g->co);
    g->n = map.n;
    g->h = map.h;
    g->w = map.w;
    g->oh = padded_size(g->h, g->kh, g->sh, g->dh, edges.top + edges.bottom);
    g->ow = padded_size(g->w, g->kw, g->sw, g->dw, edges.left + edges.right);
    LITESEG_CHECK(!g->residual || (g->co == g->c && g->oh == g->h && g->ow == g->w), kOp, "program",
                  "a residual of the output's shape", "another");
    g->xs = innermost(g->c, g->h, g->w);
    g->os = innermost(g->co, g->oh, g->ow);
    const int64_t plane = g->oh * g->ow;
    g->tile = balanced_tile(tile_pixels(g->hidden, g->n * plane, 48), g->n, plane);
    const size_t to = add_map(g->n, g->co, g->oh, g->ow);
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const InvertedResidualTable& table = LITESEG_CHOOSE(inverted_residual_table);
    stage(g->n * div_up(plane, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* memory, bool fresh) {
            table.run[kFloat](*g, begin, end, memory, fresh);
          });
  }

  struct Edges {
    int64_t top, bottom, left, right;
  };
  Edges padding() {
    Edges e{};
    e.top = code_.word("a padding", 0, 1 << 16);
    e.bottom = code_.word("a padding", 0, 1 << 16);
    e.left = code_.word("a padding", 0, 1 << 16);
    e.right = code_.word("a padding", 0, 1 << 16);
    return e;
  }
  static int64_t padded_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
    const int64_t room = size + padding - dilation * (kernel - 1) - 1;
    LITESEG_CHECK(room >= 0, kOp, "inputs", text("at least ", dilation * (kernel - 1) + 1, " with the padding"),
                  size + padding);
    return room / stride + 1;
  }

  void depthwise() {
    auto g = std::make_shared<DepthwiseArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    expect_channels(from, g->c);
    g->kh = code_.word("a kernel", 1, kLargestKernel);
    g->kw = code_.word("a kernel", 1, kLargestKernel);
    g->sh = code_.word("a stride", 1, 64);
    g->sw = code_.word("a stride", 1, 64);
    g->dh = code_.word("a dilation", 1, 1 << 16);
    g->dw = code_.word("a dilation", 1, 1 << 16);
    const Edges edges = padding();
    g->ph = edges.top;
    g->pw = edges.left;
    g->activation = activation(&g->slope);
    g->weight = code_.weight(g->kh * g->kw * g->c);
    g->bias = bias(g->c);
    g->n = map.n;
    g->h = map.h;
    g->w = map.w;
    g->oh = padded_size(g->h, g->kh, g->sh, g->dh, edges.top + edges.bottom);
    g->ow = padded_size(g->w, g->kw, g->sw, g->dw, edges.left + edges.right);
    const size_t to = add_map(g->n, g->c, g->oh, g->ow);
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    stage(g->n * g->oh, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.depthwise(*g, begin, end); });
  }

  // a dense 3x3 convolution of few channels, then a 3x3 depthwise and a pointwise one
  void stem() {
    auto g = std::make_shared<StemArgs>();
    const size_t from = any_source();
    const Map map = maps_[from];
    g->conv.c = code_.channels();
    expect_channels(from, g->conv.c);
    const int64_t hidden = g->conv.hidden = code_.channels();
    g->conv.stride = code_.word("a stride", 1, 8);
    const Edges edges = padding();
    LITESEG_CHECK(std::max({edges.top, edges.bottom, edges.left, edges.right}) <= 1, kOp, "program",
                  "a stem's padding of at most 1", "more");
    g->conv.less_top = 1 - edges.top;
    g->conv.less_left = 1 - edges.left;
    g->conv.activation = code_.activation();
    g->co = code_.channels();
    g->depthwise_activation = code_.activation();
    g->conv.weight = matrix(hidden, 9 * g->conv.c);
    g->conv.bias = bias(hidden);
    g->depthwise = code_.weight(9 * hidden);
    g->depthwise_bias = bias(hidden);
    g->project = matrix(g->co, hidden);
    g->project_bias = bias(g->co);
    g->conv.h = map.h;
    g->conv.w = map.w;
    g->conv.oh = padded_size(map.h, 3, g->conv.stride, 1, edges.top + edges.bottom);
    g->conv.ow = padded_size(map.w, 3, g->conv.stride, 1, edges.left + edges.right);
    g->conv.xs = map.input != nullptr ? map.strides : innermost(map.c, map.h, map.w);
    const size_t to = add_map(map.n, g->co, g->conv.oh, g->conv.ow);
    const float* outside = map.input != nullptr ? static_cast<const float*>(read_of(*map.input)) : nullptr;
    places_.push_back([this, g, from, to, outside] {
      g->conv.x = outside != nullptr ? outside : at(from);
      g->out = at(to);
    });
    const StemTable& table = LITESEG_CHOOSE(stem_table);
    stage(map.n * g->conv.oh, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* memory, bool fresh) {
            table.run(*g, begin, end, memory, fresh);
          });
  }

  void window() {
    auto g = std::make_shared<WindowArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->maximum = code_.flag();
    g->counts_zeros = code_.flag();
    g->kh = code_.word("a kernel", 1, 1 << 16);
    g->kw = code_.word("a kernel", 1, 1 << 16);
    g->sh = code_.word("a stride", 1, 1 << 16);
    g->sw = code_.word("a stride", 1, 1 << 16);
    g->ph = code_.word("a padding", 0, g->kh / 2);
    g->pw = code_.word("a padding", 0, g->kw / 2);
    g->n = map.n;
    g->c = map.c;
    g->h = map.h;
    g->w = map.w;
    g->oh = output_size(kOp, "height", g->h, g->kh, g->sh, g->ph, 1);
    g->ow = output_size(kOp, "width", g->w, g->kw, g->sw, g->pw, 1);
    const size_t to = add_map(g->n, g->c, g->oh, g->ow);
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    stage(g->n * g->oh, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.window(*g, begin, end); });
  }

  void combine() {
    auto g = std::make_shared<CombineArgs>();
    g->combination = static_cast<int>(code_.word("a combination", kAdd, kMultiply));
    const size_t a = source();
    const size_t b = source();
    g->activation = activation(&g->slope);
    const Map of_a = maps_[a];
    const Map of_b = maps_[b];
    const bool same = of_a.h == of_b.h && of_a.w == of_b.w;
    g->spread = !same;
    LITESEG_CHECK(of_a.n == of_b.n && of_a.c == of_b.c && (same || (of_b.h == 1 && of_b.w == 1)), kOp, "inputs",
                  text("a second map like ", of_a.n, "x", of_a.c, "x", of_a.h, "x", of_a.w, " or a pixel of it"),
                  text(of_b.n, "x", of_b.c, "x", of_b.h, "x", of_b.w));
    g->n = of_a.n;
    g->c = of_a.c;
    g->plane = of_a.h * of_a.w;
    const size_t to = add_map(of_a.n, of_a.c, of_a.h, of_a.w);
    places_.push_back([this, g, a, b, to] {
      g->a = at(a);
      g->b = at(b);
      g->out = at(to);
    });
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    stage(g->n * g->plane, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.combine(*g, begin, end); });
  }

  void mean() {
    auto g = std::make_shared<MeanArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->n = map.n;
    g->c = map.c;
    g->h = map.h;
    g->w = map.w;
    const size_t to = add_map(map.n, map.c, 1, 1);
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    stage(g->n * div_up(g->c, table.mean_channels), 0,
          [g, &table](int64_t begin, int64_t end, char*, bool) { table.mean(*g, begin, end); });
  }

  void concat() {
    const int64_t count = code_.word("a number of maps", 1, 1000);
    std::vector<size_t> parts;
    int64_t c = 0;
    for (int64_t i = 0; i < count; ++i) {
      parts.push_back(source());
      const Map& first = maps_[parts.front()];
      const Map& part = maps_[parts.back()];
      LITESEG_CHECK(part.n == first.n && part.h == first.h && part.w == first.w, kOp, "inputs",
                    text("maps of ", first.n, "x", first.h, "x", first.w), text(part.n, "x", part.h, "x", part.w));
      c += part.c;
    }
    const Map like = maps_[parts.front()];
    const size_t to = add_map(like.n, c, like.h, like.w);
    int64_t channel = 0;
    for (const size_t part : parts) {
      const int64_t width = maps_[part].c;
      auto g = std::make_shared<CopyArgs>();
      *g = {nullptr, innermost(width, like.h, like.w),
            nullptr, innermost(c, like.h, like.w),
            width,   like.h,
            like.w,  like.h,
            like.w,  0,
            0,       nullptr,
            nullptr};
      places_.push_back([this, g, part, to, channel] {
        g->from = at(part);
        g->to = at(to) + channel;
      });
      copy_stage(g, like.n);
      channel += width;
    }
  }

  // bilinear; with a second map, that one behind it along the channels
  void resize() {
    auto g = std::make_shared<UpsampleConcatArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->oh = size_argument();
    g->ow = size_argument();
    const bool aligned = code_.flag();
    const bool concat = code_.flag();
    const size_t skip = concat ? source() : from;
    const Map behind = maps_[skip];
    LITESEG_CHECK(!concat || (behind.n == map.n && behind.h == g->oh && behind.w == g->ow), kOp, "inputs",
                  text("a map of ", map.n, "x", g->oh, "x", g->ow), text(behind.n, "x", behind.h, "x", behind.w));
    g->c1 = map.c;
    g->c2 = concat ? behind.c : 0;
    g->h = map.h;
    g->w = map.w;
    g->ls = innermost(map.c, map.h, map.w);
    g->ss = innermost(behind.c, behind.h, behind.w);
    const int64_t c = g->c1 + g->c2;
    const size_t to = add_map(map.n, c, g->oh, g->ow);
    maps_[to].strides = innermost(c, g->oh, g->ow);
    maps_[to].resized = true;
    if (empty_) {
      return;
    }
    const auto ys = std::make_shared<Axis>(g->h, g->oh, aligned);
    const auto xs = std::make_shared<Axis>(g->w, g->ow, aligned);
    axes_.push_back(ys);
    axes_.push_back(xs);
    g->y = ys->view();
    g->x = xs->view();
    const UpsampleConcatTable& table = LITESEG_CHOOSE(upsample_concat_table);
    places_.push_back([this, g, from, skip, to] {
      g->low = at(from);
      g->skip = at(skip);
      g->out = at(to);
      g->os = maps_[to].strides;
    });
    g->os = {0, 0, 0, 0};  // the larger scratch is that of planes or that of channels, whatever the order will be
    UpsampleConcatArgs other = *g;
    other.os.c = 1;
    stage(map.n * g->oh, std::max(table.scratch_bytes(*g), table.scratch_bytes(other)),
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.run[kFloat](*g, begin, end, memory); });
  }

  void nearest() {
    auto g = std::make_shared<CopyArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    const int64_t oh = size_argument();
    const int64_t ow = size_argument();
    const auto places = [&](int64_t in, int64_t out) {
      auto sources = std::make_shared<std::vector<int32_t>>();
      const float scale = static_cast<float>(in) / static_cast<float>(out);
      for (int64_t i = 0; i < out; ++i) {
        sources->push_back(static_cast<int32_t>(std::min(static_cast<int64_t>(static_cast<float>(i) * scale), in - 1)));
      }
      return sources;
    };
    const auto ys = places(map.h, oh);
    const auto xs = places(map.w, ow);
    *g = {nullptr,   innermost(map.c, map.h, map.w),
          nullptr,   innermost(map.c, oh, ow),
          map.c,     map.h,
          map.w,     oh,
          ow,        0,
          0,         ys->data(),
          xs->data()};
    const size_t to = add_map(map.n, map.c, oh, ow);
    places_.push_back([this, g, from, to, ys, xs] {
      g->from = at(from);
      g->to = at(to);
    });
    copy_stage(g, map.n);
  }

  void pad() {
    auto g = std::make_shared<CopyArgs>();
    const size_t from = any_source();
    const Map map = maps_[from];
    constexpr int64_t most = 1 << 16;
    const int64_t top = code_.word("a padding", -most, most);
    const int64_t bottom = code_.word("a padding", -most, most);
    const int64_t left = code_.word("a padding", -most, most);
    const int64_t right = code_.word("a padding", -most, most);
    const int64_t oh = map.h + top + bottom;
    const int64_t ow = map.w + left + right;
    LITESEG_CHECK(oh > 0 && ow > 0, kOp, "inputs", "something left after cropping", text(oh, "x", ow));
    const Strides4 strides = map.input != nullptr ? map.strides : innermost(map.c, map.h, map.w);
    *g = {nullptr, strides, nullptr, innermost(map.c, oh, ow), map.c, map.h, map.w, oh, ow, top,
          left,    nullptr, nullptr};
    const size_t to = add_map(map.n, map.c, oh, ow);
    const float* outside = map.input != nullptr ? static_cast<const float*>(read_of(*map.input)) : nullptr;
    places_.push_back([this, g, from, to, outside] {
      g->from = outside != nullptr ? outside : at(from);
      g->to = at(to);
    });
    copy_stage(g, map.n);
  }

  void activate() {
    const size_t from = source();
    float slope = 0.0f;
    const int act = activation(&slope);
    const Map map = maps_[from];
    const size_t to = add_map(map.n, map.c, map.h, map.w);
    activate_stage(from, to, act, slope);
  }
  void activate_stage(size_t from, size_t to, int act, float slope) {
    const GraphTable& table = LITESEG_CHOOSE(graph_table);
    const auto ends = std::make_shared<std::pair<const float*, float*>>();
    places_.push_back([this, ends, from, to] { *ends = {at(from), at(to)}; });
    const int64_t floats = maps_[to].c;
    stage(maps_[to].n * maps_[to].h * maps_[to].w, 0,
          [ends, floats, act, slope, &table](int64_t begin, int64_t end, char*, bool) {
            float* out = ends->second + begin * floats;
            if (ends->first != ends->second) {
              std::memcpy(out, ends->first + begin * floats,
                          static_cast<size_t>((end - begin) * floats) * sizeof(float));
            }
            table.activate(out, (end - begin) * floats, act, slope);
          });
  }

  void output() {
    const size_t id = static_cast<size_t>(code_.word("a map", 0, layer_ - 1));
    const int64_t format = code_.word("a format", kPlanar, kLabels);
    if (format == kLabels) {
      return labels(id);
    }
    if (maps_[id].input != nullptr) {
      make_dense(id);
    }
    Map& map = maps_[id];
    Tensor out = empty_dense({map.n, map.c, map.h, map.w}, ScalarType::Float, format == kInnermost);
    results_.push_back(out);
    const Strides4 strides = dense_strides(out);
    const bool innermost_too = strides.c == 1 || map.c == 1 || (map.h == 1 && map.w == 1);
    if (map.stored && map.first < layer_ && (innermost_too || (map.resized && map.reads == 0))) {
      map.stored = false;
      map.outside = static_cast<float*>(data_of(out));
      if (map.resized && !innermost_too) {
        map.strides = strides;
      }
      // no other result may take this memory for its own
      map.reads += 1;
      map.resized = false;
      return;
    }
    map.last = layer_;
    auto g = std::make_shared<CopyArgs>();
    const bool planar = map.outside != nullptr && !map.stored && map.strides.c > 1;
    const Strides4 from = planar ? map.strides : innermost(map.c, map.h, map.w);
    *g = {nullptr, from,   static_cast<float*>(data_of(out)), strides, map.c, map.h, map.w, map.h, map.w, 0, 0,
          nullptr, nullptr};
    places_.push_back([this, g, id] { g->from = at(id); });
    copy_stage(g, map.n);
  }

  // the best class of every pixel of a map resized to `sizes`, int64 [N, H, W]
  void labels(size_t id) {
    auto g = std::make_shared<UpsampleArgmaxArgs>();
    if (maps_[id].input != nullptr) {
      make_dense(id);
    }
    Map& map = maps_[id];
    const bool resizes = code_.flag();
    g->oh = resizes ? size_argument() : map.h;
    g->ow = resizes ? size_argument() : map.w;
    const bool aligned = code_.flag();
    LITESEG_CHECK(map.c <= 256, kOp, "program", "1 to 256 classes", map.c);
    map.last = layer_;
    ++map.reads;
    Tensor out = torch::stable::empty(shape3(map.n, g->oh, g->ow), ScalarType::Long, std::nullopt,
                                      torch::stable::Device(torch::headeronly::DeviceType::CPU));
    results_.push_back(out);
    if (empty_) {
      return;
    }
    g->k = map.c;
    g->h = map.h;
    g->w = map.w;
    g->ls = innermost(map.c, map.h, map.w);
    const auto ys = std::make_shared<Axis>(map.h, g->oh, aligned);
    const auto xs = std::make_shared<Axis>(map.w, g->ow, aligned);
    axes_.push_back(ys);
    axes_.push_back(xs);
    g->y = ys->view();
    g->x = xs->view();
    const auto bytes = temporary(div_up(map.n * g->oh * g->ow, 4));
    int64_t* wide = static_cast<int64_t*>(data_of(out));
    places_.push_back([this, g, id, bytes] {
      g->logits = at(id);
      g->out = reinterpret_cast<uint8_t*>(at(bytes));
    });
    const UpsampleArgmaxTable& table = LITESEG_CHOOSE(upsample_argmax_table);
    stage(map.n * g->oh, table.scratch_bytes(*g), [g, wide, &table](int64_t begin, int64_t end, char* memory, bool) {
      table.run[kFloat](*g, begin, end, memory);
      for (int64_t i = begin * g->ow; i < end * g->ow; ++i) {
        wide[i] = g->out[i];
      }
    });
  }
  torch::headeronly::IntHeaderOnlyArrayRef shape3(int64_t n, int64_t h, int64_t w) {
    shape_ = {n, h, w};
    return {shape_.data(), shape_.size()};
  }

  int64_t allocate() {
    std::vector<Block> blocks;
    for (Map& map : maps_) {
      if (map.stored) {
        blocks.push_back({map.floats(), map.first, map.last, &map.offset});
      }
    }
    blocks.insert(blocks.end(), temporaries_.begin(), temporaries_.end());
    const int64_t total = place_blocks(blocks);
    for (const Block& block : blocks) {
      const int64_t end = *block.offset + block.floats;
      if (kGuarded) {
        places_.push_back([this, end] { forbid(base_ + end - kFence, kFenceBytes); });
      }
    }
    return total;
  }

  const std::vector<Tensor>& inputs_;
  const std::vector<int64_t>& sizes_;
  Program code_;
  int64_t panel_;
  int64_t layer_ = 0;
  bool empty_ = false;  // some map has no pixel, and nothing is computed
  float* base_ = nullptr;
  std::vector<Map> maps_;
  std::vector<Block> temporaries_;
  std::vector<std::function<void()>> places_;
  std::vector<Stage> stages_;
  std::vector<int64_t> layer_of_stage_;
  std::vector<std::shared_ptr<Axis>> axes_;
  std::vector<int64_t> shape_;
  std::vector<Tensor> results_;
};

void check(const Tensor& packed, const Tensor& program) {
  LITESEG_CHECK(packed.dim() == 1 && packed.stride(0) == 1 && packed.scalar_type() == ScalarType::Float, kOp, "packed",
                "a dense float32 vector", shape_text(packed));
  LITESEG_CHECK(program.dim() == 1 && program.stride(0) == 1 && program.scalar_type() == ScalarType::Long, kOp,
                "program", "a dense int64 vector", shape_text(program));
}

std::vector<Tensor> run_graph(std::vector<Tensor> inputs, Tensor packed, Tensor program, std::vector<int64_t> sizes) {
  check(packed, program);
  return Run(inputs, packed, program, sizes).execute(nullptr);
}

// seconds of each layer, and of what the results add
Tensor time_graph(std::vector<Tensor> inputs, Tensor packed, Tensor program, std::vector<int64_t> sizes) {
  check(packed, program);
  std::vector<double> seconds;
  Run(inputs, packed, program, sizes).execute(&seconds);
  const std::vector<int64_t> shape = {static_cast<int64_t>(seconds.size())};
  Tensor out = torch::stable::empty({shape.data(), shape.size()}, ScalarType::Double, std::nullopt,
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::copy(seconds.begin(), seconds.end(), static_cast<double*>(data_of(out)));
  return out;
}

// A number that changes when weights are written to behind torch's version counters (`parameter.data`): made of places
// and of some values of each, because reading all of them would cost as much as a layer.
int64_t fingerprint(std::vector<Tensor> weights) {
  constexpr int64_t most_samples = 16;
  uint64_t hash = 1469598103934665603u;
  const auto mix = [&hash](uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
  for (const Tensor& weight : weights) {
    int64_t span = weight.numel() > 0 ? 1 : 0;
    for (int64_t d = 0; d < weight.dim() && span > 0; ++d) {
      span += (weight.size(d) - 1) * weight.stride(d);
    }
    LITESEG_CHECK(weight.scalar_type() == ScalarType::Float && span == weight.numel(), "fingerprint", "weights",
                  "dense float32", text(dtype_text(weight.scalar_type()), " ", shape_text(weight)));
    const auto* bits = static_cast<const uint32_t*>(read_of(weight));
    mix(reinterpret_cast<uintptr_t>(bits));
    const int64_t count = weight.numel();
    const int64_t samples = std::min(count, most_samples);
    for (int64_t i = 0; i < samples; ++i) {
      mix(bits[i * count / samples]);
    }
  }
  return static_cast<int64_t>(hash);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("fingerprint", TORCH_BOX(&fingerprint));
  m.impl("run_graph", TORCH_BOX(&run_graph));
  m.impl("time_graph", TORCH_BOX(&time_graph));
}

}  // namespace liteseg::cpu
