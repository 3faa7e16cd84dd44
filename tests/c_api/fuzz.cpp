// Changes network files at random, opens them and runs those that open: nothing may crash, hang or be told as internal.
//
// fuzz FIRST COUNT FILE:WORDS:VALUES ...   draws FIRST to FIRST + COUNT; WORDS and VALUES are places in the file: where
//                                          its program begins and where the values of its weights do
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "liteseg.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

using Bytes = std::vector<unsigned char>;

struct Seed {
  Bytes bytes;
  size_t words, values;
};

volatile unsigned long long current;
constexpr unsigned kMostSeconds = 120;  // for one draw

void tell(const char* what) {
  char text[96];
  const int size = snprintf(text, sizeof(text), "fuzz: draw %llu: %s\n", current, what);
  if (write(2, text, static_cast<size_t>(size)) < 0) {
    abort();
  }
}

uint32_t crc32(const unsigned char* data, size_t size) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> made;
    for (uint32_t i = 0; i < 256; ++i) {
      made.push_back(i);
      for (int bit = 0; bit < 8; ++bit) {
        made[i] = (made[i] & 1) != 0 ? 0xedb88320u ^ (made[i] >> 1) : made[i] >> 1;
      }
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
  }
  return ~crc;
}

class Draw {
 public:
  Draw(unsigned long long number, const std::vector<Seed>& seeds) : random_(number), seeds_(seeds) {}

  Bytes file() {
    seed_ = &seeds_[below(seeds_.size())];
    bytes_ = seed_->bytes;
    const size_t changes = below(4) == 0 ? 1 + below(12) : 1 + below(2);
    for (size_t i = 0; i < changes && bytes_.size() > 32; ++i) {
      change();
    }
    // mostly files that their header does not give away
    if (below(32) != 0 && bytes_.size() >= 24) {
      const uint64_t size = bytes_.size();
      std::memcpy(&bytes_[16], &size, sizeof(size));
      const uint32_t checksum = crc32(&bytes_[24], bytes_.size() - 24);
      std::memcpy(&bytes_[12], &checksum, sizeof(checksum));
    }
    return bytes_;
  }
  size_t below(size_t count) {
    return static_cast<size_t>(random_() % count);
  }

 private:
  int64_t number(int64_t old) {
    static constexpr int64_t special[] = {0,
                                          1,
                                          2,
                                          3,
                                          4,
                                          7,
                                          8,
                                          9,
                                          15,
                                          16,
                                          17,
                                          31,
                                          32,
                                          33,
                                          63,
                                          64,
                                          65,
                                          255,
                                          256,
                                          257,
                                          1 << 10,
                                          1 << 16,
                                          1 << 20,
                                          -1,
                                          INT32_MAX,
                                          INT64_MAX,
                                          INT64_MIN,
                                          int64_t{1} << 31,
                                          int64_t{1} << 32,
                                          int64_t{1} << 40};
    switch (below(5)) {
      case 0:
        return special[below(sizeof(special) / sizeof(*special))];
      case 1:
        return static_cast<int64_t>(below(300));
      case 2:
        return static_cast<int64_t>(static_cast<uint64_t>(old) + (below(2) == 0 ? 1 : ~uint64_t{0}));
      case 3:
        return below(2) == 0 ? static_cast<int64_t>(static_cast<uint64_t>(old) * 2) : old / 2;
      default:
        return old ^ (int64_t{1} << below(24));
    }
  }
  // a place in front of the weights' values, mostly
  size_t place(size_t width) {
    const size_t end = below(8) == 0 ? bytes_.size() : std::min(seed_->values, bytes_.size());
    return below(end - std::min(end - 1, width - 1));
  }
  template <typename T>
  void replace(size_t at) {
    T value;
    std::memcpy(&value, &bytes_[at], sizeof(T));
    value = static_cast<T>(number(static_cast<int64_t>(value)));
    std::memcpy(&bytes_[at], &value, sizeof(T));
  }
  void change() {
    switch (below(10)) {
      case 0:
        bytes_[place(1)] ^= static_cast<unsigned char>(1u << below(8));
        break;
      case 1:
        bytes_[place(1)] = static_cast<unsigned char>(below(256));
        break;
      case 2:
        return replace<uint32_t>(place(4));
      case 3:
        bytes_.resize(below(bytes_.size()) + 1);
        break;
      case 4: {
        const size_t at = place(1);
        const size_t count = std::min(bytes_.size() - at, below(4) == 0 ? below(4096) : 8 * below(6));
        const Bytes part(bytes_.begin() + static_cast<long>(at), bytes_.begin() + static_cast<long>(at + count));
        if (below(2) == 0) {
          bytes_.erase(bytes_.begin() + static_cast<long>(at), bytes_.begin() + static_cast<long>(at + count));
        } else {
          bytes_.insert(bytes_.begin() + static_cast<long>(at), part.begin(), part.end());
        }
        break;
      }
      case 5: {
        const Bytes& other = seeds_[below(seeds_.size())].bytes;
        const size_t at = place(1);
        const size_t from = below(other.size());
        const size_t count = std::min({bytes_.size() - at, other.size() - from, 8 * below(64)});
        std::memcpy(&bytes_[at], &other[from], count);
        break;
      }
      case 6:
        if (below(4) == 0) {
          // a weight's value: infinities, NaN, denormals
          static constexpr uint32_t bits[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x00000001u, 0x7f7fffffu};
          const size_t at = bytes_.size() - 4 - std::min(bytes_.size() - 4, 4 * below(1000));
          std::memcpy(&bytes_[at], &bits[below(5)], 4);
          break;
        }
        [[fallthrough]];
      default: {
        // a number of the program or of the weights' list
        const size_t count = (std::min(seed_->values, bytes_.size()) - std::min(seed_->words, bytes_.size())) / 8;
        if (count > 0) {
          replace<int64_t>(seed_->words + 8 * below(count));
        }
      }
    }
  }

  std::mt19937_64 random_;
  const std::vector<Seed>& seeds_;
  const Seed* seed_ = nullptr;
  Bytes bytes_;
};

[[noreturn]] void fail(const char* what) {
  tell(what);
  std::fprintf(stderr, "%s\n", liteseg_last_error());
  std::abort();
}

struct Counts {
  unsigned long long opened = 0, ran = 0;
};

void check(liteseg_status status) {
  if (status == LITESEG_INTERNAL || (status != LITESEG_OK && *liteseg_last_error() == '\0')) {
    fail("expected a failure with a text and a reason");
  }
}

void once(Draw& draw, Counts& counts) {
  const Bytes bytes = draw.file();
  // in memory that ends where the file does
  unsigned char* data = static_cast<unsigned char*>(std::malloc(bytes.size()));
  if (!bytes.empty()) {
    std::memcpy(data, bytes.data(), bytes.size());
  }
  liteseg_options options = LITESEG_OPTIONS;
  options.threads = draw.below(16) == 0 ? 2 : 1;
  options.memory_limit = 4 << 20;
  liteseg_network* network = nullptr;
  const liteseg_status status = liteseg_open_memory(data, bytes.size(), &options, &network);
  std::free(data);
  check(status);
  if ((status == LITESEG_OK) != (network != nullptr)) {
    fail("expected a network where the status is 0, and only there");
  }
  if (network == nullptr) {
    return;
  }
  ++counts.opened;
  static const std::vector<uint8_t> picture = [] {
    std::vector<uint8_t> made(64 * 64 * 3);
    std::mt19937 random(1);
    for (uint8_t& value : made) {
      value = static_cast<uint8_t>(random());
    }
    return made;
  }();
  const int height = static_cast<int>(1 + draw.below(48));
  const int width = static_cast<int>(1 + draw.below(48));
  const liteseg_image image = {picture.data(), height, width, 0, LITESEG_RGB};
  const size_t area = static_cast<size_t>(height) * static_cast<size_t>(width);
  if (draw.below(2) == 0) {
    std::vector<uint8_t> labels(area);
    const liteseg_status ran = liteseg_labels(network, &image, labels.data(), 0, 0);
    check(ran);
    counts.ran += ran == LITESEG_OK ? 1 : 0;
    for (const uint8_t label : labels) {
      if (label >= liteseg_classes(network) && liteseg_classes(network) < 256) {
        fail("expected labels below the number of classes");
      }
    }
  } else {
    std::vector<float> logits(area * static_cast<size_t>(liteseg_classes(network)));
    const liteseg_status ran = liteseg_logits(network, &image, logits.data(), 0, 0);
    check(ran);
    counts.ran += ran == LITESEG_OK ? 1 : 0;
  }
  liteseg_close(network);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: fuzz FIRST COUNT FILE:WORDS:VALUES ...\n");
    return 2;
  }
  const unsigned long long first = std::strtoull(arguments[1], nullptr, 10);
  const unsigned long long draws = std::strtoull(arguments[2], nullptr, 10);
  std::vector<Seed> seeds;
  for (int i = 3; i < count; ++i) {
    const std::string named = arguments[i];
    const size_t second = named.rfind(':');
    const size_t colon = named.rfind(':', second - 1);
    std::ifstream file(named.substr(0, colon), std::ios::binary);
    seeds.push_back({Bytes(std::istreambuf_iterator<char>(file), {}), std::stoul(named.substr(colon + 1)),
                     std::stoul(named.substr(second + 1))});
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_set_error_report_callback([](const char*) { tell("a sanitizer's report"); });
#endif
  for (const int fatal : {SIGALRM, SIGSEGV, SIGABRT, SIGFPE, SIGILL, SIGBUS}) {
#if defined(__SANITIZE_ADDRESS__)
    if (fatal != SIGALRM) {
      continue;
    }
#endif
    signal(fatal, [](int signal_number) {
      tell(signal_number == SIGALRM ? "it hangs" : "a crash");
      _exit(1);
    });
  }
  Counts counts;
  for (current = first; current < first + draws; current = current + 1) {
    alarm(kMostSeconds);
    Draw draw(current, seeds);
    once(draw, counts);
    if ((current - first + 1) % 100000 == 0) {
      std::printf("%llu draws, %llu opened, %llu ran\n", current - first + 1, counts.opened, counts.ran);
      std::fflush(stdout);
    }
  }
  std::printf("%llu draws from %llu: %llu opened, %llu ran, no crash\n", draws, first, counts.opened, counts.ran);
  return 0;
}
