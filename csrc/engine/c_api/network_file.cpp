#include "engine/c_api/network_file.h"

#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "common/check.h"

namespace liteseg::cpu {
namespace {

constexpr const char* kOp = "liteseg_open";
constexpr unsigned char kMagic[8] = {0x89, 'L', 'S', 'N', '\r', '\n', 0x1a, '\n'};
constexpr size_t kHeader = 24;
constexpr int64_t kMostClasses = 1 << 16;
constexpr int64_t kMostChannels = 1 << 10;
constexpr int64_t kMostSide = 1 << 16;
constexpr double kMostScale = 64;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as they lie in memory");

uint32_t crc32(const unsigned char* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) {
        value = (value & 1) != 0 ? 0xedb88320u ^ (value >> 1) : value >> 1;
      }
      made[i] = value;
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
  }
  return ~crc;
}

class Reader {
 public:
  Reader(const unsigned char* data, size_t size) : at_(data), left_(size) {}

  const unsigned char* bytes(size_t count) {
    LITESEG_CHECK(count <= left_, kOp, "file", "a whole file", "one that ends in the middle");
    const unsigned char* start = at_;
    at_ += count;
    left_ -= count;
    return start;
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
    return value;
  }
  int64_t count(const char* what, int64_t least, int64_t most) {
    const int64_t value = number<uint32_t>();
    LITESEG_CHECK(value >= least && value <= most, kOp, "file", text(what, " in ", least, "..", most), value);
    return value;
  }
  // how many entries of `each` bytes follow; no more than there are bytes for
  size_t entries(size_t each) {
    const uint64_t count = number<uint64_t>();
    LITESEG_CHECK(count <= left_ / each, kOp, "file", "a whole file", "one that ends in the middle");
    return static_cast<size_t>(count);
  }
  std::string string() {
    const size_t size = number<uint32_t>();
    const auto* start = reinterpret_cast<const char*>(bytes(size));
    LITESEG_CHECK(size == 0 || std::memchr(start, 0, size) == nullptr, kOp, "file", "texts", "one with a zero byte");
    return {start, size};
  }
  std::vector<double> doubles(int64_t count) {
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(number<double>());
    }
    return values;
  }
  const unsigned char* at() const {
    return at_;
  }
  size_t left() const {
    return left_;
  }

 private:
  const unsigned char* at_;
  size_t left_;
};

void check_header(const unsigned char* data, size_t size) {
  LITESEG_CHECK(size >= sizeof(kMagic) && std::memcmp(data, kMagic, sizeof(kMagic)) == 0, kOp, "file",
                "a network file (liteseg export --format plan)", "another file");
  LITESEG_CHECK(size >= kHeader, kOp, "file", "a whole file", text("one of ", size, " bytes"));
  Reader header(data + sizeof(kMagic), kHeader - sizeof(kMagic));
  const uint32_t version = header.number<uint32_t>();
  if (version > kFileVersion) {
    throw TooNew(text(kOp, ": file: expected version ", kFileVersion, ", got ", version, ", which is newer"));
  }
  LITESEG_CHECK(version == kFileVersion, kOp, "file", text("version ", kFileVersion), version);
  const uint32_t checksum = header.number<uint32_t>();
  const uint64_t told = header.number<uint64_t>();
  LITESEG_CHECK(told == size, kOp, "file", text("a file of ", told, " bytes, as it says"), size);
  LITESEG_CHECK(crc32(data + kHeader, size - kHeader) == checksum, kOp, "file", "what its checksum says",
                "a damaged file");
}

bool all_in(const std::vector<double>& values, double above, double most) {
  for (const double value : values) {
    // false for NaN
    if (!(value > above && value <= most)) {
      return false;
    }
  }
  return true;
}

}  // namespace

NetworkFile read_network_file(const unsigned char* data, size_t size) {
  check_header(data, size);
  Reader reader(data + kHeader, size - kHeader);
  NetworkFile file;
  file.description = reader.string();
  file.classes = reader.count("a number of classes", 1, kMostClasses);
  if (reader.count("a flag", 0, 1) != 0) {
    for (int64_t i = 0; i < file.classes; ++i) {
      file.class_names.push_back(reader.string());
    }
  }
  file.input_scale = reader.number<double>();
  LITESEG_CHECK(file.input_scale > 0 && file.input_scale <= kMostScale, kOp, "file",
                text("an input scale above 0 and up to ", kMostScale), file.input_scale);
  file.smallest_side = reader.count("a smallest side", 1, kMostSide);
  const int64_t channels = reader.count("a number of channels", 1, kMostChannels);
  file.mean = reader.doubles(channels);
  file.std = reader.doubles(channels);
  LITESEG_CHECK(all_in(file.mean, -1e6, 1e6) && all_in(file.std, 0.0, 1e6), kOp, "file",
                "finite means and positive standard deviations", "others");
  const size_t words = reader.entries(sizeof(int64_t));
  file.words.resize(words);
  const unsigned char* bytes = reader.bytes(words * sizeof(int64_t));
  if (words > 0) {
    std::memcpy(file.words.data(), bytes, words * sizeof(int64_t));
  }
  const size_t weights = reader.entries((2 + kWeightDims) * sizeof(int64_t));
  int64_t floats = 0;
  for (size_t i = 0; i < weights; ++i) {
    const uint64_t place = reader.number<uint64_t>();
    // behind the one before, so that no word is two weights'
    const uint64_t least = file.weights.empty() ? 0 : file.weights.back().place + 1;
    LITESEG_CHECK(place >= least && place < words, kOp, "file", "weights in the order of their words", "another");
    const int64_t kind = reader.number<int64_t>();
    int64_t dims[kWeightDims];
    for (int64_t& dim : dims) {
      dim = reader.number<int64_t>();
    }
    file.weights.push_back({place, checked_weight(kOp, kind, dims)});
    // neither is above 2^40
    floats += plain_floats(file.weights.back().weight);
    LITESEG_CHECK(floats <= static_cast<int64_t>(reader.left() / sizeof(float)), kOp, "file", "values for all weights",
                  "fewer");
  }
  file.values = reader.at();
  LITESEG_CHECK(reader.left() == static_cast<size_t>(floats) * sizeof(float), kOp, "file",
                text(floats, " values of weights"), text(reader.left(), " bytes"));
  return file;
}

}  // namespace liteseg::cpu
