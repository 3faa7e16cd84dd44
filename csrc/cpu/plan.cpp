// Registration of liteseg_cpu::run_plan: a whole network from one program and one tensor of packed weights.
//
// The program is a flat list of layers that liteseg_kernels/plan writes, so the op keeps no state: its arguments can
// be copied, pickled and used by several threads at once. Everything that depends on the input's size (shapes, the
// arena's layout, the split over threads) is worked out at each call, which takes microseconds.
#include <functional>
#include <limits>
#include <memory>

#include "cpu/arena.h"
#include "cpu/geometry.h"
#include "cpu/guard.h"
#include "cpu/inverted_residual.h"
#include "cpu/isa.h"
#include "cpu/pack_table.h"
#include "cpu/plan_bf16.h"
#include "cpu/plan_convolution.h"
#include "cpu/plan_daspp.h"
#include "cpu/plan_decoder.h"
#include "cpu/plan_stem.h"
#include "cpu/plan_stem_pool.h"
#include "cpu/plan_winograd.h"
#include "cpu/program.h"
#include "cpu/resample.h"
#include "cpu/shuffle_unit.h"
#include "cpu/team.h"
#include "cpu/tensors.h"
#include "cpu/upsample_argmax.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "run_plan";
constexpr int64_t kVersion = 1;
// the first word of a program with weights for bfloat16 kernels
constexpr int64_t kBf16Version = kVersion + 256;
constexpr int64_t kBf16Vector = 16;  // their maps have pixels of whole vectors

enum Kind : int64_t {
  kStem = 1,
  kInvertedResidual = 2,
  kPyramid = 3,
  kDecoder = 4,
  kStemPool = 5,
  kShuffleUnit = 6,
  kConvolution = 7,
  kWinograd = 8,
  kMaxPool = 9,
};

// a feature map [N, h, w, c] in the arena
struct Map {
  int64_t c = 0, h = 0, w = 0;
  int64_t pixel = 0;    // floats of memory: c, or whole vectors of bf16
  int64_t offset = -1;  // floats into the arena
  int64_t last_use = -1;
  bool scores = false;  // float, in a bfloat16 plan

  int64_t floats(int64_t n) const {
    return n * pixel * h * w;
  }
};

// Builds the stages of one call. Layers are described before the arena exists: pointers are set by `place`.
class Run {
 public:
  Run(const Tensor& x, const Tensor& packed, const Tensor& program, const std::vector<int64_t>& size)
      : x_(x), n_(x.size(0)), code_(kOp, program, packed), panel_(LITESEG_CHOOSE(pack_table).panel) {
    const bool half = x.scalar_type() == ScalarType::BFloat16;
    bf16_ = half ? bf16_tables() : nullptr;
    LITESEG_CHECK(!half || bf16_ != nullptr, kOp, "x", "float32, or bfloat16 on a processor with AVX512_BF16",
                  dtype_text(x.scalar_type()));
    const int64_t version = half ? kBf16Version : kVersion;
    LITESEG_CHECK(code_.word() == version, kOp, "program", text("version ", version, " for this dtype of x"),
                  "another one");
    const int64_t panel = code_.word();
    LITESEG_CHECK(panel == panel_, kOp, "program", text("weights packed for panels of ", panel_), panel);
    const int64_t layers = code_.word("a number of layers", 1, 1000);
    maps_.push_back({x.size(1), x.size(2), x.size(3), 0, -1, -1, false});
    for (int64_t i = 0; i < layers; ++i) {
      layer();
    }
    LITESEG_CHECK(code_.done(), kOp, "program", text("no words after ", layers, " layers"), "some");
    head(size);
  }

  Tensor execute(std::vector<double>* seconds) {
    if (out_.numel() == 0) {
      return out_;
    }
    char* memory = arena(allocate() * static_cast<int64_t>(sizeof(float)));
    base_ = reinterpret_cast<float*>(memory);
    for (const auto& place : places_) {
      place();
    }
    std::vector<double> of_stages;
    run_stages(stages_, seconds == nullptr ? nullptr : &of_stages);
    if (seconds != nullptr) {
      seconds->assign(static_cast<size_t>(layers_), 0.0);
      for (size_t i = 0; i < of_stages.size(); ++i) {
        (*seconds)[static_cast<size_t>(layer_of_stage_[i])] += of_stages[i];
      }
    }
    return out_;
  }

 private:
  int64_t panels(int64_t columns) const {
    return round_up(columns, panel_);
  }
  // `stretches` of the rows each start in a word of their own, where a word is two bf16
  const float* matrix(int64_t columns, int64_t rows, int64_t stretches = 1) {
    return code_.weight(panels(columns) * (bf16_ == nullptr ? rows : stretches * div_up(rows / stretches, 2)));
  }
  // depthwise weights of a map that the layer itself makes
  const float* inner_depthwise(int64_t channels) {
    constexpr int64_t words = 8 * 3;  // of pair rows
    return code_.weight(bf16_ == nullptr ? 9 * channels : words * round_up(channels, kBf16Vector));
  }
  const float* bias(int64_t columns) {
    return code_.weight(panels(columns));
  }

  size_t source() {
    const size_t id = static_cast<size_t>(code_.word("a map", 0, static_cast<int64_t>(maps_.size()) - 1));
    LITESEG_CHECK(!maps_[id].scores, kOp, "program", "nothing that reads the scores", text("layer ", layers_));
    maps_[id].last_use = layers_;
    return id;
  }
  // a map other than the network's input, which has strides of its own
  size_t inner_source(int64_t c) {
    const size_t id = source();
    LITESEG_CHECK(id > 0 && maps_[id].c == c, kOp, "program", text("a map of ", c, " channels"), maps_[id].c);
    return id;
  }
  void add_map(int64_t c, int64_t h, int64_t w) {
    maps_.push_back({c, h, w, bf16_ == nullptr ? c : round_up(c, kBf16Vector) / 2, -1, layers_, false});
  }
  float* at(size_t map) const {
    return base_ + maps_[map].offset;
  }
  bf16* bf16_at(size_t map) const {
    return reinterpret_cast<bf16*>(at(map));
  }
  float* at(const std::shared_ptr<int64_t>& offset) const {
    return base_ + *offset;
  }
  std::shared_ptr<int64_t> temporary(int64_t floats) {
    auto offset = std::make_shared<int64_t>(-1);
    temporaries_.push_back({floats, layers_, layers_, offset.get()});
    return offset;
  }
  void stage(int64_t items, int64_t scratch_bytes, std::function<void(int64_t, int64_t, char*, bool)> run) {
    stages_.push_back({items, scratch_bytes, std::move(run)});
    layer_of_stage_.push_back(layers_);
  }

  void layer() {
    kind_ = code_.word();
    LITESEG_CHECK(bf16_ == nullptr || kind_ <= kDecoder, kOp, "program", "a layer with a bfloat16 kernel", kind_);
    switch (kind_) {
      case kStem:
        stem();
        break;
      case kInvertedResidual:
        inverted_residual();
        break;
      case kPyramid:
        pyramid();
        break;
      case kDecoder:
        decoder();
        break;
      case kStemPool:
        stem_pool();
        break;
      case kShuffleUnit:
        shuffle_unit();
        break;
      case kConvolution:
        convolution();
        break;
      case kWinograd:
        winograd();
        break;
      case kMaxPool:
        max_pool();
        break;
      default:
        LITESEG_CHECK(false, kOp, "program", "a known layer", "another one");
    }
    ++layers_;
  }

  // a dense 3x3 convolution of the network's input
  void dense_conv(DenseConv* conv, size_t from) {
    LITESEG_CHECK(from == 0, kOp, "program", "a stem that reads the input", from);
    conv->c = maps_[0].c;
    LITESEG_CHECK(code_.channels() == conv->c, kOp, "x", "the plan's number of channels", conv->c);
    conv->hidden = code_.channels();
    conv->stride = code_.word("a stride", 1, 8);
    conv->activation = code_.activation();
    conv->weight = matrix(conv->hidden, 9 * conv->c, 3);
    conv->bias = bias(conv->hidden);
    conv->h = maps_[0].h;
    conv->w = maps_[0].w;
    conv->oh = output_size(kOp, "x", conv->h, 3, conv->stride, 1, 1);
    conv->ow = output_size(kOp, "x", conv->w, 3, conv->stride, 1, 1);
    conv->x = static_cast<const float*>(read_of(x_));
    conv->xs = strides_of(x_);
  }

  void stem() {
    auto g = std::make_shared<StemArgs>();
    dense_conv(&g->conv, source());
    const int64_t hidden = g->conv.hidden;
    g->co = code_.channels();
    g->depthwise_activation = code_.activation();
    g->depthwise = inner_depthwise(hidden);
    g->depthwise_bias = bias(hidden);
    g->project = matrix(g->co, hidden);
    g->project_bias = bias(g->co);
    add_map(g->co, g->conv.oh, g->conv.ow);
    const size_t to = maps_.size() - 1;
    if (bf16_ != nullptr) {
      return stem_bf16(*g, to);
    }
    places_.push_back([this, g, to] { g->out = at(to); });
    const StemTable& table = LITESEG_CHOOSE(stem_table);
    stage(n_ * g->conv.oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
      table.run(*g, begin, end, scratch, fresh);
    });
  }

  void stem_pool() {
    auto g = std::make_shared<StemPoolArgs>();
    dense_conv(&g->conv, source());
    g->oh = output_size(kOp, "x", g->conv.oh, 3, 2, 1, 1);
    g->ow = output_size(kOp, "x", g->conv.ow, 3, 2, 1, 1);
    add_map(g->conv.hidden, g->oh, g->ow);
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, to] { g->out = at(to); });
    const StemPoolTable& table = LITESEG_CHOOSE(stem_pool_table);
    stage(n_ * g->oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
      table.run(*g, begin, end, scratch, fresh);
    });
  }

  void stem_bf16(const StemArgs& f, size_t to) {
    auto g = std::make_shared<StemBf16Args>();
    *g = {static_cast<const bf16*>(read_of(x_)),
          f.conv.xs,
          f.conv.weight,
          f.conv.bias,
          f.depthwise,
          f.depthwise_bias,
          f.project,
          f.project_bias,
          nullptr,
          n_,
          f.conv.c,
          f.conv.h,
          f.conv.w,
          f.conv.hidden,
          f.co,
          f.conv.oh,
          f.conv.ow,
          f.conv.stride,
          f.conv.activation,
          f.depthwise_activation};
    places_.push_back([this, g, to] { g->out = bf16_at(to); });
    const StemBf16Table& table = *bf16_->stem;
    stage(n_ * g->oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
      table.run(*g, begin, end, scratch, fresh);
    });
  }

  GroupedPointwise grouped(int64_t groups, int64_t in, int64_t out) {
    GroupedPointwise p{};
    p.groups = groups;
    p.in = in / groups;
    p.out = out / groups;
    p.bias_stride = round_up(p.out, panel_ / 2);
    p.weight_stride = p.bias_stride * p.in;
    p.weight = code_.weight(groups * p.weight_stride);
    p.bias = code_.weight(groups * p.bias_stride);
    return p;
  }

  void shuffle_unit() {
    auto g = std::make_shared<ShuffleUnitArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    g->c = code_.channels();
    LITESEG_CHECK(from > 0 && map.c == g->c, kOp, "program", text("a map of ", g->c, " channels"), map.c);
    g->bottleneck = code_.channels();
    g->branch = code_.channels();
    const int64_t first_groups = code_.channels();
    const int64_t groups = code_.channels();
    LITESEG_CHECK(g->c % first_groups == 0 && g->bottleneck % first_groups == 0 && g->bottleneck % groups == 0 &&
                      g->branch % groups == 0,
                  kOp, "program", "groups that divide the channels", text(first_groups, " and ", groups));
    g->sh = g->sw = code_.word("a stride", 1, 8);
    g->dh = g->dw = code_.word("a dilation", 1, 1 << 16);
    const bool concat = code_.flag();
    const int64_t most_stored = code_.word("a number of floats", 0, int64_t{1} << 40);
    g->compress = grouped(first_groups, g->c, g->bottleneck);
    g->depthwise = code_.weight(9 * g->bottleneck);
    g->depthwise_bias = bias(g->bottleneck);
    g->expand = grouped(groups, g->bottleneck, g->branch);
    g->average = concat ? code_.weight(9 * g->c) : nullptr;
    g->oh = output_size(kOp, "x", g->h, 3, g->sh, g->dh, g->dh);
    g->ow = output_size(kOp, "x", g->w, 3, g->sw, g->dw, g->dw);
    LITESEG_CHECK(concat || (g->branch == g->c && g->oh == g->h && g->ow == g->w), kOp, "program",
                  "a branch of the input's shape", "another");
    const int64_t co = g->branch + (concat ? g->c : 0);
    g->xs = {g->h * g->w * g->c, 1, g->w * g->c, g->c};
    g->os = {g->oh * g->ow * co, 1, g->ow * co, co};
    // computed place i of group j is shuffled place i * groups + j
    const auto shuffle = std::make_shared<std::vector<int32_t>>();
    for (int64_t place = 0; place < g->bottleneck; ++place) {
      shuffle->push_back(static_cast<int32_t>(place % groups * (g->bottleneck / groups) + place / groups));
    }
    g->shuffle = shuffle->data();
    const int64_t plane = g->oh * g->ow;
    g->tile = balanced_tile(tile_pixels(g->bottleneck, n_ * plane, 48), n_, plane);
    const int64_t pixels = n_ * g->h * g->w;
    g->compress_tile = balanced_tile(48, 1, pixels);
    constexpr int64_t widest = 16;  // vectors of any instruction set divide it
    const int64_t image = g->h * g->w * round_up(g->bottleneck, widest);
    g->stores = image <= most_stored;
    const auto compressed = temporary(g->stores ? n_ * image : 0);
    add_map(co, g->oh, g->ow);
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, from, to, compressed, shuffle] {
      g->x = at(from);
      g->out = at(to);
      g->compressed = at(compressed);
    });
    const ShuffleUnitTable& table = LITESEG_CHOOSE(shuffle_unit_table);
    if (g->stores) {
      stage(div_up(pixels, g->compress_tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.compress(*g, begin, end); });
    }
    stage(n_ * div_up(plane, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run[kFloat](*g, begin, end, scratch, fresh);
          });
  }

  void inverted_residual() {
    auto g = std::make_shared<InvertedResidualArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    LITESEG_CHECK(from > 0 && map.c == g->c, kOp, "program", text("a map of ", g->c, " channels"), map.c);
    const bool expands = code_.flag();
    g->hidden = code_.channels();
    LITESEG_CHECK(expands || g->hidden == g->c, kOp, "program", text(g->c, " hidden channels"), g->hidden);
    g->co = code_.channels();
    g->sh = g->sw = code_.word("a stride", 1, 8);
    g->dh = g->dw = g->ph = g->pw = code_.word("a dilation", 1, 1 << 16);
    g->activation = code_.activation();
    g->residual = code_.flag();
    if (expands) {
      g->expand = matrix(g->hidden, g->c);
      g->expand_bias = bias(g->hidden);
    }
    g->depthwise = inner_depthwise(g->hidden);
    g->depthwise_bias = bias(g->hidden);
    g->project = matrix(g->co, g->hidden);
    g->project_bias = bias(g->co);
    g->kh = g->kw = 3;
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    g->oh = output_size(kOp, "x", g->h, 3, g->sh, g->ph, g->dh);
    g->ow = output_size(kOp, "x", g->w, 3, g->sw, g->pw, g->dw);
    LITESEG_CHECK(!g->residual || (g->co == g->c && g->oh == g->h && g->ow == g->w), kOp, "program",
                  "a residual of the output's shape", "another");
    g->xs = {g->h * g->w * g->c, 1, g->w * g->c, g->c};
    g->os = {g->oh * g->ow * g->co, 1, g->ow * g->co, g->co};
    const int64_t plane = g->oh * g->ow;
    g->tile = balanced_tile(tile_pixels(g->hidden, n_ * plane, 48), n_, plane);
    add_map(g->co, g->oh, g->ow);
    const size_t to = maps_.size() - 1;
    if (bf16_ != nullptr) {
      return inverted_residual_bf16(*g, from, to);
    }
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const InvertedResidualTable& table = LITESEG_CHOOSE(inverted_residual_table);
    stage(n_ * div_up(plane, g->tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run[kFloat](*g, begin, end, scratch, fresh);
          });
  }

  void inverted_residual_bf16(const InvertedResidualArgs& f, size_t from, size_t to) {
    auto g = std::make_shared<InvertedResidualBf16Args>();
    *g = {nullptr,
          f.expand,
          f.expand_bias,
          f.depthwise,
          f.depthwise_bias,
          f.project,
          f.project_bias,
          nullptr,
          nullptr,
          false,
          f.n,
          f.c,
          f.h,
          f.w,
          f.hidden,
          f.co,
          f.oh,
          f.ow,
          f.sh,
          f.dh,
          f.activation,
          f.residual,
          f.tile};
    const int64_t pairs = div_up(f.h, 2);
    const int64_t expanded = n_ * pairs * (f.w + 2 * std::min(f.dh, f.w)) * round_up(f.hidden, kBf16Vector);
    // floats of a wide map that stays in the caches until the next stage; a larger one goes through rings
    constexpr int64_t most = 1 << 19;
    g->whole = expanded <= most;
    const auto store = temporary(g->whole ? expanded : 0);
    places_.push_back([this, g, from, to, store] {
      g->x = bf16_at(from);
      g->out = bf16_at(to);
      g->expanded = reinterpret_cast<uint32_t*>(at(store));
    });
    const InvertedResidualBf16Table& table = *bf16_->inverted_residual;
    if (g->whole) {
      stage(n_ * pairs, 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.expand(*g, begin, end); });
    }
    stage(n_ * div_up(f.oh * f.ow, f.tile), table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run(*g, begin, end, scratch, fresh);
          });
  }

  void pyramid() {
    auto g = std::make_shared<PyramidArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    LITESEG_CHECK(from > 0 && map.c == g->c, kOp, "program", text("a map of ", g->c, " channels"), map.c);
    const bool has_last = code_.flag();
    g->channels = code_.channels();
    LITESEG_CHECK(has_last || g->channels == g->c, kOp, "program", text(g->c, " channels"), g->channels);
    g->filters = code_.channels();
    g->last_activation = code_.activation();
    if (has_last) {
      g->last = matrix(g->channels, g->c);
      g->last_bias = bias(g->channels);
    }
    g->count = code_.word("a number of branches", 1, kMaxBranches);
    const int64_t f = g->filters;
    for (int64_t i = 0; i < g->count; ++i) {
      PyramidBranch& branch = g->branches[i];
      branch = {};
      branch.rate = code_.word("a rate", 0, 1 << 16);
      const bool projected = code_.flag();
      const bool deep = code_.flag();
      LITESEG_CHECK(projected || (i == 0 && !deep && g->count > 1), kOp, "program", "branches with a projection",
                    "none");
      branch.activation = code_.activation();
      branch.pointwise = matrix(f, g->channels);
      branch.bias = bias(f);
      if (branch.rate > 0) {
        branch.depthwise = code_.weight(9 * g->channels);
      }
      if (projected) {
        branch.project = matrix(f, f);
      }
      if (deep) {
        branch.deep_depthwise = code_.weight(9 * f);
        branch.deep_pointwise = matrix(f, f);
        branch.deep_bias = bias(f);
      }
    }
    g->pool = matrix(f, g->channels);
    g->pool_bias = bias(f);
    g->pool_project = matrix(f, f);
    g->project_bias = bias(f);
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    const int64_t pixels = g->h * g->w;
    // fixed by the channels, not by the threads: the order of the sums must not depend on those
    constexpr int64_t most_groups = 4;
    g->group_channels = round_up(div_up(g->channels, most_groups), 32);
    g->groups = div_up(g->channels, g->group_channels);
    g->tile = std::min(balanced_tile(48, n_, pixels), pixels);
    const auto partial = temporary(n_ * g->groups * g->count * pixels * f);
    const auto reduced = temporary(n_ * g->count * pixels * f);
    const auto pool_partial = temporary(n_ * g->groups * panels(f));
    const auto start = temporary(n_ * panels(f));
    add_map(f, g->h, g->w);
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, from, to, partial, reduced, pool_partial, start] {
      g->x = at(from);
      g->out = at(to);
      g->partial = at(partial);
      g->reduced = at(reduced);
      g->pool_partial = at(pool_partial);
      g->start = at(start);
    });
    if (bf16_ != nullptr) {
      return pyramid_bf16(g, from, to);
    }
    const PyramidTable& table = LITESEG_CHOOSE(pyramid_table);
    const int64_t scratch = table.scratch_bytes(*g);
    stage(n_ * g->groups, scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.sum(*g, begin, end, memory); });
    stage(n_ * (g->count + 1), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.reduce(*g, begin, end, memory); });
    stage(n_ * div_up(pixels, g->tile), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.project(*g, begin, end, memory); });
  }

  void pyramid_bf16(const std::shared_ptr<PyramidArgs>& f, size_t from, size_t to) {
    auto g = std::make_shared<PyramidBf16Args>();
    places_.push_back([this, g, f, from, to] { *g = {*f, bf16_at(from), bf16_at(to)}; });
    const PyramidBf16Table& table = *bf16_->pyramid;
    const int64_t scratch = table.scratch_bytes({*f, nullptr, nullptr});
    stage(n_ * f->groups, scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.sum(*g, begin, end, memory); });
    stage(n_ * (f->count + 1), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.reduce(*g, begin, end, memory); });
    stage(n_ * div_up(f->h * f->w, f->tile), scratch,
          [g, &table](int64_t begin, int64_t end, char* memory, bool) { table.project(*g, begin, end, memory); });
  }

  void decoder() {
    auto g = std::make_shared<DecoderArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c1 = code_.channels();
    LITESEG_CHECK(from > 0 && map.c == g->c1, kOp, "program", text("a map of ", g->c1, " channels"), map.c);
    const bool has_skip = code_.flag();
    // without a skip connection the map still tells the size
    const size_t skip = source();
    const Map like = maps_[skip];
    LITESEG_CHECK(skip > 0, kOp, "program", "a skip connection from inside the network", "its input");
    g->c2 = has_skip ? like.c : 0;
    g->f1 = code_.channels();
    g->f2 = code_.channels();
    g->k = code_.channels();
    g->activation1 = code_.activation();
    g->activation2 = code_.activation();
    const bool lifts = code_.flag();
    const int64_t c = (lifts ? 0 : g->c1) + g->c2;
    constexpr int64_t widest = 16;  // vectors of any instruction set divide it
    if (lifts) {
      g->lift = matrix(9 * g->f1, g->c1);
    }
    g->depthwise1 = code_.weight(9 * round_up(c, widest));
    g->pointwise1 = matrix(g->f1, c);
    g->bias1 = bias(g->f1);
    g->depthwise2 = code_.weight(9 * round_up(g->f1, widest));
    g->pointwise2 = matrix(g->f2, g->f1);
    g->bias2 = bias(g->f2);
    g->classifier = matrix(g->k, g->f2);
    g->classifier_bias = bias(g->k);
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    g->oh = like.h;
    g->ow = like.w;
    const auto ys = std::make_shared<Axis>(g->h, g->oh, true);
    const auto xs = std::make_shared<Axis>(g->w, g->ow, true);
    g->ys = ys->view();
    g->xs = xs->view();
    axes_.push_back(ys);
    axes_.push_back(xs);
    const int64_t pixels = n_ * g->h * g->w;
    g->lift_tile = balanced_tile(48, 1, pixels);
    const auto lifted = temporary(lifts ? pixels * 9 * g->f1 : 0);
    add_map(g->k, g->oh, g->ow);
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, from, skip, to, has_skip, lifted] {
      g->x = at(from);
      g->lifted = at(lifted);
      g->skip = has_skip ? at(skip) : nullptr;
      g->out = at(to);
      g->os = {g->oh * g->ow * g->k, 1, g->ow * g->k, g->k};
      if (direct_ && to + 1 == maps_.size()) {
        g->out = static_cast<float*>(data_of(out_));
        g->os = dense_strides(out_);
      }
    });
    if (bf16_ != nullptr) {
      return decoder_bf16(g, from, skip, to);
    }
    const DecoderTable& table = LITESEG_CHOOSE(decoder_table);
    if (lifts) {
      stage(div_up(pixels, g->lift_tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.lift(*g, begin, end); });
    }
    stage(n_ * g->oh, table.scratch_bytes(*g), [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
      table.run(*g, begin, end, scratch, fresh);
    });
  }

  void decoder_bf16(const std::shared_ptr<DecoderArgs>& f, size_t from, size_t skip, size_t to) {
    maps_[to].pixel = f->k;
    maps_[to].scores = true;
    auto g = std::make_shared<DecoderBf16Args>();
    places_.push_back([this, g, f, from, skip, to] {
      const bool result = direct_ && to + 1 == maps_.size();
      *g = {*f, bf16_at(from), bf16_at(skip), result ? nullptr : f->out,
            result ? static_cast<bf16*>(data_of(out_)) : nullptr};
    });
    const DecoderBf16Table& table = *bf16_->decoder;
    if (f->lift != nullptr) {
      stage(div_up(n_ * f->h * f->w, f->lift_tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.lift(*g, begin, end); });
    }
    stage(n_ * f->oh, table.scratch_bytes({*f, nullptr, nullptr, nullptr, nullptr}),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.run(*g, begin, end, scratch, fresh);
          });
  }

  // a map after an optional 2x2 pool of stride 2
  void add_pooled_map(int64_t c, int64_t h, int64_t w, bool pool) {
    const int64_t step = pool ? 2 : 1;
    LITESEG_CHECK(h >= step && w >= step, kOp, "x", "enough rows and columns for every pool", text(h, "x", w));
    add_map(c, h / step, w / step);
  }

  void convolution() {
    auto g = std::make_shared<ConvolutionArgs>();
    const size_t from = source();
    const Map map = maps_[from];
    g->c = code_.channels();
    if (from == 0) {
      LITESEG_CHECK(map.c == g->c, kOp, "x", "the plan's number of channels", map.c);
      g->xs = strides_of(x_);
    } else {
      LITESEG_CHECK(map.c == g->c, kOp, "program", text("a map of ", g->c, " channels"), map.c);
      g->xs = {map.h * map.w * g->c, 1, map.w * g->c, g->c};
    }
    g->co = code_.channels();
    g->kernel = code_.word("a kernel", 1, kMostTaps);
    g->stride = code_.word("a stride", 1, 8);
    g->padding = code_.word("a padding", 0, 1 << 10);
    g->dilation = code_.word("a dilation", 1, 1 << 16);
    g->pool = code_.flag();
    g->activation = code_.activation(&g->slope);
    g->weight = matrix(g->co, g->kernel * g->kernel * g->c);
    g->bias = bias(g->co);
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    g->oh = output_size(kOp, "x", g->h, g->kernel, g->stride, g->padding, g->dilation);
    g->ow = output_size(kOp, "x", g->w, g->kernel, g->stride, g->padding, g->dilation);
    add_pooled_map(g->co, g->oh, g->ow, g->pool);
    if (g->pool) {
      g->oh -= g->oh % 2;
      g->ow -= g->ow % 2;
    }
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, from, to] {
      g->x = from == 0 ? static_cast<const float*>(read_of(x_)) : at(from);
      g->out = at(to);
    });
    const ConvolutionTable& table = LITESEG_CHOOSE(convolution_table);
    if (from > 0 && g->kernel == 1 && g->stride == 1 && !g->pool) {
      const int64_t pixels = n_ * g->h * g->w;
      g->tile = balanced_tile(96, 1, pixels);
      stage(div_up(pixels, g->tile), 0,
            [g, &table](int64_t begin, int64_t end, char*, bool) { table.points(*g, begin, end); });
      return;
    }
    stage(n_ * maps_[to].h, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool fresh) {
            table.rows(*g, begin, end, scratch, fresh);
          });
  }

  void winograd() {
    auto g = std::make_shared<WinogradArgs>();
    const size_t from = inner_source(code_.channels());
    const Map map = maps_[from];
    g->c = map.c;
    g->co = code_.channels();
    g->padding = code_.word("a padding", 0, 1 << 10);
    g->dilation = code_.word("a dilation", 1, 1 << 16);
    g->output = 2 * code_.word("a tile of 2 or 4 outputs", 1, 2);
    g->pool = code_.flag();
    LITESEG_CHECK(!g->pool || g->dilation == 1, kOp, "program", "no dilation before a pool", g->dilation);
    const bool passes = code_.flag();
    g->activation = code_.activation(&g->slope);
    const int64_t taps = (g->output + 2) * (g->output + 2);
    g->weight = matrix(g->co, taps * g->c);
    g->bias = bias(g->co);
    g->n = n_;
    g->h = map.h;
    g->w = map.w;
    g->oh = output_size(kOp, "x", g->h, 3, 1, g->padding, g->dilation);
    g->ow = output_size(kOp, "x", g->w, 3, 1, g->padding, g->dilation);
    add_pooled_map(g->co, g->oh, g->ow, g->pool);
    if (g->pool) {
      g->oh -= g->oh % 2;
      g->ow -= g->ow % 2;
    }
    g->grid_rows = std::min(g->dilation, g->oh);
    g->grid_columns = std::min(g->dilation, g->ow);
    g->rows = div_up(div_up(g->oh, g->dilation), g->output);
    g->columns = div_up(div_up(g->ow, g->dilation), g->output);
    const int64_t tiles = n_ * g->grid_rows * g->grid_columns * g->rows * g->columns;
    const WinogradTable& table = LITESEG_CHOOSE(winograd_table);
    const int64_t panel_count = panels(g->co) / panel_;
    const size_t to = maps_.size() - 1;
    g->block = 1;
    if (!passes) {
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
            [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run(*g, begin, end, scratch); });
      return;
    }
    // a good part of the cache that all cores share
    constexpr int64_t floats = int64_t{6} << 20;
    g->block = std::max<int64_t>(48, floats / (table.v_floats(*g) + table.m_floats(*g, panel_count)));
    const int64_t rounds = std::max<int64_t>(1, div_up(tiles, g->block));
    g->block = round_up(div_up(tiles, rounds), 12);
    const auto v = temporary(table.v_floats(*g));
    const auto m = temporary(table.m_floats(*g, panel_count));
    for (int64_t first = 0; first < tiles; first += g->block) {
      const auto pass = std::make_shared<WinogradArgs>(*g);
      pass->first = first;
      pass->count = std::min(g->block, tiles - first);
      places_.push_back([this, pass, from, to, v, m] {
        pass->x = at(from);
        pass->out = at(to);
        pass->v = at(v);
        pass->m = at(m);
      });
      const auto add = [&](int64_t items, int64_t scratch, auto run) {
        stage(items, scratch,
              [pass, run](int64_t begin, int64_t end, char* memory, bool) { run(*pass, begin, end, memory); });
      };
      add(pass->count, table.pass_scratch(*pass), table.transform);
      add(taps * panel_count, 0,
          [&table](const WinogradArgs& args, int64_t begin, int64_t end, char*) { table.multiply(args, begin, end); });
      add(panel_count * pass->count, 0,
          [&table](const WinogradArgs& args, int64_t begin, int64_t end, char*) { table.finish(args, begin, end); });
    }
  }

  void max_pool() {
    auto g = std::make_shared<PoolArgs>();
    const size_t from = inner_source(code_.channels());
    const Map map = maps_[from];
    g->n = n_;
    g->c = map.c;
    g->h = map.h;
    g->w = map.w;
    add_pooled_map(g->c, g->h, g->w, true);
    const size_t to = maps_.size() - 1;
    places_.push_back([this, g, from, to] {
      g->x = at(from);
      g->out = at(to);
    });
    const ConvolutionTable& table = LITESEG_CHOOSE(convolution_table);
    stage(n_ * (g->h / 2), 0, [g, &table](int64_t begin, int64_t end, char*, bool) { table.pool(*g, begin, end); });
  }

  // the network's output: logits as they are, or labels at the size asked for
  void head(const std::vector<int64_t>& size) {
    const Map& last = maps_.back();
    LITESEG_CHECK(bf16_ == nullptr || last.scores, kOp, "program", "a decoder at its end", "another layer");
    if (size.empty()) {
      out_ = empty_dense({n_, last.c, last.h, last.w}, x_.scalar_type(), is_channels_last(x_));
      direct_ = kind_ == kDecoder;
      if (!direct_) {
        copy(maps_.size() - 1);
      }
      return;
    }
    LITESEG_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, kOp, "size", "none or two numbers of at least 1",
                  size.size());
    LITESEG_CHECK(last.c <= 256, kOp, "program", "1 to 256 classes", last.c);
    out_ = empty_dense({n_, size[0], size[1]}, ScalarType::Byte, false);
    const auto ys = std::make_shared<Axis>(last.h, size[0], true);
    const auto xs = std::make_shared<Axis>(last.w, size[1], true);
    axes_.push_back(ys);
    axes_.push_back(xs);
    auto g = std::make_shared<UpsampleArgmaxArgs>();
    g->k = last.c;
    g->h = last.h;
    g->w = last.w;
    g->oh = size[0];
    g->ow = size[1];
    g->ls = {last.h * last.w * last.c, 1, last.w * last.c, last.c};
    g->y = ys->view();
    g->x = xs->view();
    g->out = static_cast<uint8_t*>(data_of(out_));
    const size_t from = maps_.size() - 1;
    maps_[from].last_use = layers_;
    places_.push_back([this, g, from] { g->logits = at(from); });
    const UpsampleArgmaxTable& table = LITESEG_CHOOSE(upsample_argmax_table);
    stage(n_ * g->oh, table.scratch_bytes(*g),
          [g, &table](int64_t begin, int64_t end, char* scratch, bool) { table.run[kFloat](*g, begin, end, scratch); });
    ++layers_;
  }

  // a map to the network's output, for the layers that do not write there themselves
  void copy(size_t from) {
    const Map map = maps_[from];
    const Strides4 os = dense_strides(out_);
    float* out = static_cast<float*>(data_of(out_));
    maps_[from].last_use = layers_;
    const auto source = std::make_shared<const float*>();
    places_.push_back([this, source, from] { *source = at(from); });
    stage(n_ * map.h, 0, [source, map, os, out](int64_t begin, int64_t end, char*, bool) {
      for (int64_t row = begin; row < end; ++row) {
        const float* src = *source + row * map.w * map.c;
        float* dst = out + row / map.h * os.n + row % map.h * os.h;
        for (int64_t x = 0; x < map.w; ++x) {
          for (int64_t c = 0; c < map.c; ++c) {
            dst[x * os.w + c * os.c] = src[x * map.c + c];
          }
        }
      }
    });
    // its time counts as the last layer's
    layer_of_stage_.back() = layers_ - 1;
  }

  // offsets of all maps and temporaries; returns the floats needed
  int64_t allocate() {
    std::vector<Block> blocks;
    // map i + 1 is written by layer i
    for (size_t i = 1; i < maps_.size(); ++i) {
      if (direct_ && i + 1 == maps_.size()) {
        break;
      }
      blocks.push_back({maps_[i].floats(n_), static_cast<int64_t>(i) - 1, maps_[i].last_use, &maps_[i].offset});
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

  const Tensor& x_;
  int64_t n_;
  Program code_;
  int64_t panel_;
  const Bf16Tables* bf16_ = nullptr;  // of a bfloat16 plan
  int64_t layers_ = 0;
  int64_t kind_ = 0;     // of the last layer
  bool direct_ = false;  // whether the last layer writes the network's output itself
  Tensor out_;
  float* base_ = nullptr;
  std::vector<Map> maps_;
  std::vector<Block> temporaries_;
  std::vector<std::function<void()>> places_;
  std::vector<Stage> stages_;
  std::vector<int64_t> layer_of_stage_;
  std::vector<std::shared_ptr<Axis>> axes_;
};

void check(const Tensor& x, const Tensor& packed, const Tensor& program) {
  check_4d(kOp, "x", x);
  LITESEG_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, kOp, "x",
                "float32 or bfloat16", dtype_text(x.scalar_type()));
  LITESEG_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, kOp, "x", "a channel and a pixel", shape_text(x));
  LITESEG_CHECK(packed.dim() == 1 && packed.stride(0) == 1 && packed.scalar_type() == ScalarType::Float, kOp, "packed",
                "a dense float32 vector", shape_text(packed));
  LITESEG_CHECK(program.dim() == 1 && program.stride(0) == 1 && program.scalar_type() == ScalarType::Long, kOp,
                "program", "a dense int64 vector", shape_text(program));
}

Tensor run_plan(Tensor x, Tensor packed, Tensor program, std::vector<int64_t> size) {
  check(x, packed, program);
  return Run(x, packed, program, size).execute(nullptr);
}

// seconds of each layer, and of the labels where a size is given
Tensor time_plan(Tensor x, Tensor packed, Tensor program, std::vector<int64_t> size) {
  check(x, packed, program);
  std::vector<double> seconds;
  Run(x, packed, program, size).execute(&seconds);
  const std::vector<int64_t> shape = {static_cast<int64_t>(seconds.size())};
  Tensor out = torch::stable::empty({shape.data(), shape.size()}, ScalarType::Double, std::nullopt,
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::copy(seconds.begin(), seconds.end(), static_cast<double*>(data_of(out)));
  return out;
}

int64_t panel() {
  return LITESEG_CHOOSE(pack_table).panel;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CPU, m) {
  m.impl("run_plan", TORCH_BOX(&run_plan));
  m.impl("time_plan", TORCH_BOX(&time_plan));
}

STABLE_TORCH_LIBRARY_IMPL(liteseg_cpu, CompositeExplicitAutograd, m) {
  m.impl("panel", TORCH_BOX(&panel));
}

}  // namespace liteseg::cpu
