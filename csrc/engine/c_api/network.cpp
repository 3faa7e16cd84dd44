#include "engine/c_api/network.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/kernels/pack.h"
#include "engine/picture.h"
#include "engine/plan/layers.h"
#include "engine/plan/plan.h"
#include "engine/plan/program.h"
#include "engine/runtime/arena.h"
#include "engine/runtime/isa.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOpen = "liteseg_open";

// a picture as the kernel reads it: where its first channel lies, and how far apart its values are
struct Pixels {
  const uint8_t* first;
  int64_t row, pixel, channel;
};

Pixels pixels_of(const char* op, const liteseg_image& image) {
  LITESEG_CHECK(image.order >= LITESEG_RGB && image.order <= LITESEG_BGRA, op, "image", "a known order of its values",
                static_cast<int>(image.order));
  LITESEG_CHECK(image.pixels != nullptr, op, "image", "pixels", "NULL");
  LITESEG_CHECK(image.height > 0 && image.width > 0, op, "image", "a height and width of at least 1",
                text(image.height, "x", image.width));
  const bool reversed = image.order == LITESEG_BGR || image.order == LITESEG_BGRA;
  const int64_t pixel = image.order == LITESEG_RGBA || image.order == LITESEG_BGRA ? 4 : 3;
  const int64_t dense = pixel * image.width;
  const int64_t row = image.row_bytes == 0 ? dense : static_cast<int64_t>(image.row_bytes);
  LITESEG_CHECK(row >= dense || row <= -dense, op, "image", text("rows of at least ", dense, " bytes"), row);
  // positions in a row are 32-bit numbers
  LITESEG_CHECK(dense <= std::numeric_limits<int32_t>::max(), op, "image", "rows of less than 2^31 values", dense);
  return {image.pixels + (reversed ? 2 : 0), row, pixel, reversed ? -1 : 1};
}

int64_t resized(const char* op, int64_t size, double scale, int64_t smallest) {
  // to even where it is a half, as Python rounds
  const int64_t side = static_cast<int64_t>(std::nearbyint(static_cast<double>(size) * scale));
  LITESEG_CHECK(side >= smallest, op, "image",
                text("height and width of at least ", smallest, " when resized by ", scale), side);
  return side;
}

}  // namespace

Network::Network(const unsigned char* data, size_t size, const liteseg_options& options)
    : file_(read_network_file(data, size)),
      bf16_(options.bfloat16 != 0),
      memory_limit_(options.memory_limit),
      pool_(options.threads == 0 ? processors() : options.threads) {
  if (file_.mean.size() != 3) {
    throw Unsupported(
        text(kOpen, ": file: expected a network of RGB pictures, got one of ", file_.mean.size(), " channels"));
  }
  if (bf16_ && bf16_tables() == nullptr) {
    throw Unsupported(text(kOpen, ": options: expected no bfloat16 on ", isa_name(isa()), ", got it"));
  }
  pack();
  file_.values = nullptr;
  try_program();
}

// every weight as the kernels in use read it, and its place in the program
void Network::pack() {
  const int64_t panel = LITESEG_CHOOSE(pack_table).panel;
  std::vector<int64_t>& words = file_.words;
  LITESEG_CHECK(words.size() >= 3 && words[0] == kPlanVersion, kOpen, "file",
                text("a program of version ", kPlanVersion), words.empty() ? 0 : words[0]);
  words[0] = bf16_ ? kBf16PlanVersion : kPlanVersion;
  words[1] = panel;
  for (const NetworkFile::Placed& placed : file_.weights) {
    floats_ += packed_floats(placed.weight, panel, bf16_);
    check_memory(kOpen, floats_ * static_cast<int64_t>(sizeof(float)), memory_limit_);
  }
  constexpr size_t line = 64;
  const size_t bytes = (static_cast<size_t>(floats_) * sizeof(float) + line - 1) / line * line;
  packed_.reset(static_cast<float*>(std::aligned_alloc(line, std::max(bytes, line))));
  if (packed_ == nullptr) {
    throw std::bad_alloc();
  }
  std::vector<float> plain;
  int64_t at = 0;
  const unsigned char* values = file_.values;
  for (const NetworkFile::Placed& placed : file_.weights) {
    // in the file they lie at any address
    plain.resize(static_cast<size_t>(plain_floats(placed.weight)));
    if (!plain.empty()) {
      std::memcpy(plain.data(), values, plain.size() * sizeof(float));
    }
    values += plain.size() * sizeof(float);
    pack_weight(placed.weight, plain.data(), panel, bf16_, packed_.get() + at);
    words[placed.place] = at;
    at += packed_floats(placed.weight, panel, bf16_);
  }
}

// reads the program for the smallest picture, so that a wrong one is refused now
void Network::try_program() const {
  const std::vector<Input> inputs = {{nullptr, 1, 3, file_.smallest_side, file_.smallest_side, {}}};
  const std::vector<int64_t> sizes;
  Builder b(kOpen, inputs, sizes, program(kOpen), pool_, plan_tables(bf16_));
  const size_t scores = read_plan_layers(b);
  LITESEG_CHECK(b.map(scores).c == file_.classes, kOpen, "file", text("a program of ", file_.classes, " classes"),
                b.map(scores).c);
}

template <typename AddResult>
void Network::run(const char* op, const liteseg_image& image, int64_t height, int64_t width, void* out,
                  const AddResult& add_result) const {
  const Pixels pixels = pixels_of(op, image);
  LITESEG_CHECK(out != nullptr, op, "result", "memory", "NULL");
  LITESEG_CHECK((height > 0 && width > 0) || (height == 0 && width == 0), op, "height and width",
                "both at least 1, or 0 for the picture's own", text(height, " and ", width));
  const int64_t c = static_cast<int64_t>(file_.mean.size());
  PreprocessArgs g{};
  g.h = image.height;
  g.w = image.width;
  g.c = c;
  g.oh = resized(op, g.h, file_.input_scale, file_.smallest_side);
  const int64_t ow = resized(op, g.w, file_.input_scale, file_.smallest_side);
  const std::vector<Input> inputs = {{nullptr, 1, c, g.oh, ow, innermost(c, g.oh, ow)}};
  const std::vector<int64_t> sizes;
  Builder b(op, inputs, sizes, program(op), pool_, plan_tables(bf16_));
  b.limit_memory(memory_limit_);
  const Axis y(g.h, g.oh, false);
  const Axis x(g.w, ow, false);
  const PictureColumns columns(x, g.w, ow, file_.mean, file_.std, true);
  g.image = pixels.first;
  g.image_h = pixels.row;
  g.image_w = pixels.pixel;
  g.image_c = pixels.channel;
  g.out_h = ow * c;
  g.y = y.view();
  g.columns = columns.view();
  const PreprocessTable& table = LITESEG_CHOOSE(preprocess_table);
  const DType dtype = bf16_ ? kBFloat16 : kFloat;
  b.stage(g.oh, table.scratch_bytes(g), [&g, &table, dtype](int64_t begin, int64_t end, char* scratch, bool) {
    table.run[dtype](g, begin, end, scratch);
  });
  const size_t scores = read_plan_layers(b);
  add_result(b, scores);
  // the map of the input lies in the arena, in front of all that is made of it
  b.place([&b, &g] { g.out = b.at(0); });
  b.results().front().data = out;
  b.execute(nullptr);
}

void Network::labels(const liteseg_image& image, uint8_t* labels, int64_t height, int64_t width) const {
  run("liteseg_labels", image, height, width, labels, [&](Builder& b, size_t scores) {
    const bool own = height == 0;
    b.add_labels(scores, Result::kBytes, own ? image.height : height, own ? image.width : width, true);
  });
}

void Network::logits(const liteseg_image& image, float* logits, int64_t height, int64_t width) const {
  run("liteseg_logits", image, height, width, logits, [&](Builder& b, size_t scores) {
    const bool own = height == 0;
    const size_t map =
        add_resized(b, scores, std::nullopt, own ? image.height : height, own ? image.width : width, true);
    b.next_layer();
    b.add_result(map, Result::kFloats, false);
  });
}

}  // namespace liteseg::cpu
