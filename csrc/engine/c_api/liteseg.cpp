// The C functions: arguments in, exceptions to a status and a text.
#include "engine/c_api/liteseg.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

#include "engine/c_api/network.h"
#include "engine/runtime/isa.h"

struct liteseg_network {
  liteseg::cpu::Network network;
};

namespace liteseg::cpu {
namespace {

struct CannotRead : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string& last_error() {
  static thread_local std::string told;
  return told;
}

liteseg_status fail(liteseg_status status, const char* what) {
  try {
    last_error() = what;
  } catch (...) {
    last_error().clear();
  }
  return status;
}

// `wrong` is what a failed check means here
template <typename F>
liteseg_status guarded(liteseg_status wrong, const F& f) {
  try {
    f();
    return LITESEG_OK;
  } catch (const std::bad_alloc&) {
    return fail(LITESEG_OUT_OF_MEMORY, "liteseg: memory: expected more of it, got none from the system");
  } catch (const std::length_error&) {
    return fail(LITESEG_OUT_OF_MEMORY, "liteseg: memory: expected less to be asked for, got more than there can be");
  } catch (const MemoryLimit& error) {
    return fail(LITESEG_OUT_OF_MEMORY, error.what());
  } catch (const TooNew& error) {
    return fail(LITESEG_UNSUPPORTED, error.what());
  } catch (const Unsupported& error) {
    return fail(LITESEG_UNSUPPORTED, error.what());
  } catch (const CannotRead& error) {
    return fail(LITESEG_CANNOT_READ, error.what());
  } catch (const std::system_error& error) {
    // of threads, which the system has no more of
    return fail(LITESEG_OUT_OF_MEMORY, error.what());
  } catch (const std::invalid_argument& error) {
    return fail(LITESEG_INVALID_ARGUMENT, error.what());
  } catch (const std::runtime_error& error) {
    return fail(wrong, error.what());
  } catch (...) {
    return fail(LITESEG_INTERNAL, "liteseg: expected no such failure, got an unknown one");
  }
}

struct File {
  int descriptor;
  ~File() {
    if (descriptor >= 0) {
      close(descriptor);
    }
  }
};

[[noreturn]] void cannot_read(const char* path) {
  const int code = errno;
  throw CannotRead(text("liteseg_open: path: expected a file to read, got '", path, "': ", std::strerror(code)));
}

std::vector<unsigned char> contents(const char* path) {
  const File file{open(path, O_RDONLY | O_CLOEXEC)};
  struct stat about{};
  if (file.descriptor < 0 || fstat(file.descriptor, &about) != 0) {
    cannot_read(path);
  }
  if (!S_ISREG(about.st_mode)) {
    errno = S_ISDIR(about.st_mode) ? EISDIR : EINVAL;
    cannot_read(path);
  }
  std::vector<unsigned char> data(static_cast<size_t>(about.st_size));
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t got = read(file.descriptor, data.data() + have, data.size() - have);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      cannot_read(path);
    }
    if (got == 0) {
      break;
    }
    have += static_cast<size_t>(got);
  }
  // a file that has shrunk since is one that ends in the middle
  data.resize(have);
  return data;
}

liteseg_options checked(const liteseg_options* given) {
  liteseg_options options = LITESEG_OPTIONS;
  if (given == nullptr) {
    return options;
  }
  if (given->size < sizeof(size_t) || given->size > sizeof(options)) {
    throw std::invalid_argument(text("liteseg_open: options: expected a size of at most ", sizeof(options),
                                     ", that of this library's, got ", given->size));
  }
  std::memcpy(&options, given, given->size);
  if (options.threads < 0 || options.threads > 1024 || options.memory_limit < 0) {
    throw std::invalid_argument(text("liteseg_open: options: expected 0 to 1024 threads and no negative limit, got ",
                                     options.threads, " and ", options.memory_limit));
  }
  return options;
}

void need(const char* op, const char* argument, const void* given) {
  if (given == nullptr) {
    throw std::invalid_argument(text(op, ": ", argument, ": expected it, got NULL"));
  }
}

}  // namespace
}  // namespace liteseg::cpu

using namespace liteseg::cpu;  // of this file's C functions

const char* liteseg_version(void) {
  return LITESEG_VERSION;
}

const char* liteseg_instruction_set(void) {
  const char* name = nullptr;
  guarded(LITESEG_UNSUPPORTED, [&] { name = isa_name(isa()); });
  return name;
}

const char* liteseg_last_error(void) {
  return last_error().c_str();
}

liteseg_status liteseg_open_memory(const void* data, size_t size, const liteseg_options* options,
                                   liteseg_network** network) {
  return guarded(LITESEG_BROKEN_FILE, [&] {
    need("liteseg_open_memory", "network", network);
    *network = nullptr;
    need("liteseg_open_memory", "data", data);
    *network = new liteseg_network{{static_cast<const unsigned char*>(data), size, checked(options)}};
  });
}

liteseg_status liteseg_open(const char* path, const liteseg_options* options, liteseg_network** network) {
  return guarded(LITESEG_BROKEN_FILE, [&] {
    need("liteseg_open", "network", network);
    *network = nullptr;
    need("liteseg_open", "path", path);
    const std::vector<unsigned char> data = contents(path);
    *network = new liteseg_network{{data.data(), data.size(), checked(options)}};
  });
}

void liteseg_close(liteseg_network* network) {
  delete network;
}

int liteseg_classes(const liteseg_network* network) {
  return network == nullptr ? 0 : static_cast<int>(network->network.file().classes);
}

const char* liteseg_class_name(const liteseg_network* network, int index) {
  if (network == nullptr || index < 0) {
    return nullptr;
  }
  const std::vector<std::string>& names = network->network.file().class_names;
  return static_cast<size_t>(index) < names.size() ? names[static_cast<size_t>(index)].c_str() : nullptr;
}

double liteseg_input_scale(const liteseg_network* network) {
  return network == nullptr ? 0.0 : network->network.file().input_scale;
}

int liteseg_smallest_side(const liteseg_network* network) {
  return network == nullptr ? 0 : static_cast<int>(network->network.file().smallest_side);
}

const char* liteseg_description(const liteseg_network* network) {
  return network == nullptr ? nullptr : network->network.file().description.c_str();
}

int liteseg_threads(const liteseg_network* network) {
  return network == nullptr ? 0 : static_cast<int>(network->network.threads());
}

liteseg_status liteseg_labels(const liteseg_network* network, const liteseg_image* image, uint8_t* labels, int height,
                              int width) {
  return guarded(LITESEG_INVALID_ARGUMENT, [&] {
    need("liteseg_labels", "network", network);
    need("liteseg_labels", "image", image);
    network->network.labels(*image, labels, height, width);
  });
}

liteseg_status liteseg_logits(const liteseg_network* network, const liteseg_image* image, float* logits, int height,
                              int width) {
  return guarded(LITESEG_INVALID_ARGUMENT, [&] {
    need("liteseg_logits", "network", network);
    need("liteseg_logits", "image", image);
    network->network.logits(*image, logits, height, width);
  });
}
