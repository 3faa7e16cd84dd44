// The ops for programs without Python, which otherwise defines them (liteseg_kernels/_schemas.py): a C++ program that
// loads this library and calls liteseg_register_ops can run AOTInductor packages of fused networks, whose code calls
// liteseg::<op>. It must not be called where liteseg_kernels is imported.
#include <torch/csrc/stable/library.h>

#include <string>

#include "schemas.h"

namespace liteseg::cpu {
namespace {

using torch::stable::detail::StableLibrary;

// libraries stay registered as long as they live: for ever
StableLibrary& library(StableLibrary::Kind kind, const char* space, const char* key) {
  return *new StableLibrary(kind, space, key, __FILE__, __LINE__);
}

// a public op runs the compiled kernel of its name, whose arguments and results lie on the stack as its own do
#define LITESEG_RUN_COMPILED(op, signature)                                                                  \
  void run_##op(StableIValue* stack, uint64_t, uint64_t) {                                                   \
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("liteseg_cpu::" #op, "", stack, TORCH_ABI_VERSION)); \
  }
LITESEG_SCHEMAS(LITESEG_RUN_COMPILED)
#undef LITESEG_RUN_COMPILED

// kernels take numbers where the public schemas, which are traced, have symbols for them
std::string with_numbers(std::string signature) {
  const std::string symbol = "SymInt";
  for (size_t at = signature.find(symbol); at != std::string::npos; at = signature.find(symbol)) {
    signature.replace(at, symbol.size(), "int");
  }
  return signature;
}

void register_ops() {
  StableLibrary& spelled = library(StableLibrary::Kind::FRAGMENT, "liteseg", nullptr);
  StableLibrary& compiled = library(StableLibrary::Kind::FRAGMENT, "liteseg_cpu", nullptr);
  StableLibrary& runs = library(StableLibrary::Kind::IMPL, "liteseg", "CPU");
#define LITESEG_REGISTER(op, signature)                  \
  spelled.def(#op signature);                            \
  compiled.def((#op + with_numbers(signature)).c_str()); \
  runs.impl(#op, run_##op);
  LITESEG_SCHEMAS(LITESEG_REGISTER)
#undef LITESEG_REGISTER
}

}  // namespace
}  // namespace liteseg::cpu

extern "C" __attribute__((visibility("default"))) void liteseg_register_ops() {
  liteseg::cpu::register_ops();
}
