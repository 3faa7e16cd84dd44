// Runs an AOTInductor package that calls liteseg's ops, without Python: run_package LIBRARY PACKAGE OUTPUT.
// The input is [1, 3, 96, 128] of i % 17 / 8 - 1; OUTPUT gets the result's floats.
#include <ATen/ops/arange.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>

int main(int count, char** arguments) {
  if (count != 4) {
    return 2;
  }
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  reinterpret_cast<void (*)()>(dlsym(library, "liteseg_register_ops"))();
  torch::inductor::AOTIModelPackageLoader model(arguments[2]);
  const at::Tensor input = at::arange(3 * 96 * 128).remainder(17).to(at::kFloat).div(8).sub(1).view({1, 3, 96, 128});
  const at::Tensor output = model.run({input})[0].contiguous();
  std::FILE* file = std::fopen(arguments[3], "wb");
  std::fwrite(output.const_data_ptr(), sizeof(float), static_cast<size_t>(output.numel()), file);
  return std::fclose(file);
}
