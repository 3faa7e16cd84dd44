// A network from a file, packed for this processor and ready to run.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/c_api/liteseg.h"
#include "engine/c_api/network_file.h"
#include "engine/plan/builder.h"
#include "engine/runtime/pool.h"

namespace liteseg::cpu {

// something that this processor or library cannot do
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Network {
 public:
  // data: a network file, not needed afterwards; options are in their limits
  Network(const unsigned char* data, size_t size, const liteseg_options& options);

  // labels [height][width]
  void labels(const liteseg_image& image, uint8_t* labels, int64_t height, int64_t width) const;
  // logits [classes][height][width]
  void logits(const liteseg_image& image, float* logits, int64_t height, int64_t width) const;

  const NetworkFile& file() const {
    return file_;
  }
  int64_t threads() const {
    return pool_.count();
  }

 private:
  struct Free {
    void operator()(float* data) const {
      std::free(data);
    }
  };

  void pack();
  void try_program() const;
  Program program(const char* op) const {
    return {op, file_.words.data(), static_cast<int64_t>(file_.words.size()), packed_.get(), floats_};
  }
  template <typename AddResult>
  void run(const char* op, const liteseg_image& image, int64_t height, int64_t width, void* out,
           const AddResult& add_result) const;

  NetworkFile file_;  // without its values; its words point to the packed weights
  bool bf16_;
  int64_t memory_limit_;
  int64_t floats_ = 0;
  std::unique_ptr<float, Free> packed_;
  Pool pool_;
};

}  // namespace liteseg::cpu
