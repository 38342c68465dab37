// Classifies an image with an artifact of `tvm-na compile`: the five most likely classes.
//
//   classify ARTIFACT IMAGE.ppm     an RGB image (PPM, P6) of the size that the model takes
//   classify ARTIFACT noise SIZE    random pixels, height and width SIZE
//
// An artifact holds operators.so, which registers the model's attention as operators of PyTorch, and model/, which
// calls them. The library comes first. The manifest is for people and for Python; what this program must not get
// wrong is the CPU, which the library tells.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

namespace {

void load_operators(const std::string& file) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  auto missing_feature = reinterpret_cast<const char* (*)()>(dlsym(library, "tvm_na_missing_feature"));
  if (missing_feature == nullptr) throw std::runtime_error(file + ": required a library of tvm-na compile");
  if (const char* feature = missing_feature()) {
    throw std::runtime_error(file + ": required a CPU with " + feature + ", got one without it");
  }
}

// uint8 [height, width, 3].
at::Tensor read_ppm(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, largest = 0;
  stream >> kind >> width >> height >> largest;
  stream.get();  // the one white space before the pixels
  if (!stream || kind != "P6" || width < 1 || height < 1 || largest != 255) {
    throw std::runtime_error(file + ": required a binary PPM image (P6) with 255 as the largest value");
  }
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  stream.read(static_cast<char*>(pixels.mutable_data_ptr()), static_cast<std::streamsize>(pixels.numel()));
  if (stream.gcount() != pixels.numel()) throw std::runtime_error(file + ": required more pixels, got a cut file");
  return pixels;
}

// float32 [1, 3, height, width], normalised as the checkpoints of NAT want it ("preprocessing" in the manifest).
at::Tensor to_input(const at::Tensor& pixels) {
  at::Tensor mean = at::tensor({0.485f, 0.456f, 0.406f}), std = at::tensor({0.229f, 0.224f, 0.225f});
  at::Tensor normalised = (pixels.to(at::kFloat) / 255 - mean) / std;
  return normalised.permute({2, 0, 1}).unsqueeze(0).contiguous();  // the model reads contiguous memory
}

}  // namespace

int main(int argc, char** argv) {
  const bool noise = argc == 4 && std::string(argv[2]) == "noise";
  if (argc != 3 && !noise) {
    std::fprintf(stderr, "usage: %s ARTIFACT IMAGE.ppm\n       %s ARTIFACT noise SIZE\n", argv[0], argv[0]);
    return 2;
  }
  try {
    const std::string artifact = argv[1];
    setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);  // else an image of another size is read as if it had the right one
    load_operators(artifact + "/operators.so");
    torch::inductor::AOTIModelPackageLoader model(artifact + "/model");

    c10::InferenceMode inference;
    const int64_t size = noise ? std::stoll(argv[3]) : 0;
    at::Tensor pixels = noise ? at::randint(0, 256, {size, size, 3}, at::kByte) : read_ppm(argv[2]);
    at::Tensor probabilities = model.run({to_input(pixels)})[0].softmax(-1)[0];
    auto [values, classes] = probabilities.topk(std::min<int64_t>(5, probabilities.numel()));
    for (int64_t i = 0; i < values.numel(); ++i) {
      std::printf("class %4ld  %6.2f%%\n", static_cast<long>(classes[i].item<int64_t>()), 100 * values[i].item<double>());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
