// The network file: what `liteseg export --format plan` writes (liteseg_kernels/plan/file.py) and the C API opens.
//
// All numbers are little-endian. A text is its length (u32) and so many bytes of UTF-8.
//
//   0   magic        8 bytes 0x89 'L' 'S' 'N' '\r' '\n' 0x1a '\n': a file that was sent as text is noticed
//   8   version      u32
//   12  checksum     u32, CRC-32 (that of zlib) of everything from byte 24 on
//   16  size         u64, bytes of the whole file
//   24  description  text, JSON
//       classes      u32; whether they have names, u32; where they do, a text for each
//       scale        f64; smallest side, u32
//       channels     u32; mean and standard deviation of each, f64 all means first
//       words        u64, how many; i64 each: a program of run_plan (plan/program.h), panel and offsets 0
//       weights      u64, how many; for each u64 place of its word, i64 kind, 3 x i64 dims (plan/weights.h)
//       values       f32: the weights', in their order, to the end of the file
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "engine/plan/weights.h"

namespace liteseg::cpu {

constexpr uint32_t kFileVersion = 1;

struct NetworkFile {
  struct Placed {
    uint64_t place;
    Weight weight;
  };
  std::string description;
  int64_t classes;
  std::vector<std::string> class_names;  // none, or one a class
  double input_scale;
  int64_t smallest_side;
  std::vector<double> mean, std;  // one a channel
  std::vector<int64_t> words;
  std::vector<Placed> weights;
  const unsigned char* values;  // in the data that was read; of floats, at any address
};

// the file is newer than this library
struct TooNew : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Reads data [size], which outlives the result. Throws std::runtime_error on anything that is not as above, and allocates
// no more than a small multiple of `size`.
NetworkFile read_network_file(const unsigned char* data, size_t size);

}  // namespace liteseg::cpu
