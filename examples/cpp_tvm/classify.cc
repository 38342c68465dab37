// Classifies an image with an artifact of `tvm-na compile --format tvm`: the five most likely classes. Without PyTorch.
//
//   classify ARTIFACT IMAGE.ppm     an RGB image (PPM, P6) of the size that the model takes
//   classify ARTIFACT noise SIZE    random pixels, height and width SIZE
//   classify ARTIFACT check         whether the outputs are right, for an artifact that was made on another machine:
//                                   such a one comes with expected.safetensors
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>

#include "artifact.h"

namespace {

namespace ffi = tvm::ffi;
using tvm_na::Artifact;

struct Image {
  int64_t height, width;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

Image read_ppm(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, largest = 0;
  stream >> kind >> width >> height >> largest;
  stream.get();  // the one white space before the pixels
  constexpr int64_t kMost = 1 << 15;
  if (!stream || kind != "P6" || width < 1 || height < 1 || width > kMost || height > kMost || largest != 255) {
    throw std::runtime_error(file + ": required a binary PPM image (P6) with 255 as the largest value");
  }
  Image image{height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3))};
  stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  if (static_cast<size_t>(stream.gcount()) != image.pixels.size()) {
    throw std::runtime_error(file + ": required more pixels, got a cut file");
  }
  return image;
}

Image noise(const std::string& text) {
  const bool is_number = !text.empty() && text.size() < 6 && text.find_first_not_of("0123456789") == std::string::npos;
  const int64_t size = is_number ? std::stoll(text) : 0;
  if (size < 1) throw std::runtime_error("SIZE: required a positive number of pixels, got " + text);
  Image image{size, size, std::vector<uint8_t>(static_cast<size_t>(size * size * 3))};
  std::mt19937 generator;
  for (uint8_t& value : image.pixels) value = static_cast<uint8_t>(generator() >> 24);
  return image;
}

// [1, 3, height, width], normalised as the manifest says.
template <typename T>
ffi::Tensor normalised(const Image& image, const ffi::json::Object& preprocessing, DLDataType dtype) {
  const auto mean = tvm_na::field<ffi::Array<double>>(preprocessing, "mean");
  const auto deviation = tvm_na::field<ffi::Array<double>>(preprocessing, "std");
  const int64_t area = image.height * image.width;
  const ffi::Shape shape{1, 3, image.height, image.width};
  ffi::Tensor input = ffi::Tensor::FromNDAlloc(tvm_na::Aligned(), shape, dtype, tvm_na::kCpu);
  T* values = static_cast<T*>(input.data_ptr());
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t i = 0; i < area; ++i) {
      const double value = image.pixels[static_cast<size_t>(3 * i + channel)] / 255.0;
      values[channel * area + i] = static_cast<T>((value - mean[channel]) / deviation[channel]);
    }
  }
  return input;
}

ffi::Tensor to_input(const Image& image, const Artifact& artifact) {
  const auto preprocessing = tvm_na::field<ffi::Any>(artifact.manifest(), "preprocessing");
  if (preprocessing == nullptr) {
    throw std::runtime_error(artifact.folder() + ": required a classifier of images with preprocessing");
  }
  const auto about = preprocessing.cast<ffi::json::Object>();
  const auto wanted = tvm_na::field<ffi::json::Object>(artifact.manifest(), "input");
  const DLDataType dtype = tvm_na::dtype_of(tvm_na::field<ffi::String>(wanted, "dtype"));
  return dtype.bits == 32 ? normalised<float>(image, about, dtype) : normalised<double>(image, about, dtype);
}

// The numbers of a tensor of floating point numbers.
std::vector<double> numbers(const ffi::Tensor& tensor) {
  const size_t count = static_cast<size_t>(tensor.numel());
  if (tensor.dtype() == DLDataType{kDLFloat, 32, 1}) {
    const float* data = static_cast<const float*>(tensor.data_ptr());
    return {data, data + count};
  }
  if (tensor.dtype() != DLDataType{kDLFloat, 64, 1}) throw std::runtime_error("outputs: required float32 or float64");
  const double* data = static_cast<const double*>(tensor.data_ptr());
  return {data, data + count};
}

void print_best(const ffi::Tensor& logits) {
  std::vector<double> probabilities = numbers(logits);
  const double largest = *std::max_element(probabilities.begin(), probabilities.end());
  double sum = 0;
  for (double& p : probabilities) sum += p = std::exp(p - largest);
  std::vector<size_t> classes(probabilities.size());
  std::iota(classes.begin(), classes.end(), 0);
  const auto best = classes.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(5, classes.size()));
  std::partial_sort(classes.begin(), best, classes.end(),
                    [&](size_t a, size_t b) { return probabilities[a] > probabilities[b]; });
  for (auto it = classes.begin(); it != best; ++it) {
    std::printf("class %4zu  %6.2f%%\n", *it, 100 * probabilities[*it] / sum);
  }
}

// max |out - right| / max |right|; infinite for another shape, and for numbers that are not finite.
double relative_error(const ffi::Tensor& out, const ffi::Tensor& right) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto shape = out.shape(), wanted = right.shape();
  if (!std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end())) return kInfinity;
  const std::vector<double> got = numbers(out), expected = numbers(right);
  double error = 0, scale = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(got[i] - expected[i]);
    if (!std::isfinite(difference)) return kInfinity;  // std::max would pass over NaN
    error = std::max(error, difference);
    scale = std::max(scale, std::abs(expected[i]));
  }
  return error == 0 ? 0 : error / scale;
}

// 0 if the outputs for the input of expected.safetensors are those in it, else 1.
int check(const Artifact& artifact) {
  const std::string file = artifact.folder() + "/expected.safetensors";
  const auto expected = tvm_na::read_safetensors(file);
  const auto budget = tvm_na::field<double>(tvm_na::field<ffi::json::Object>(artifact.manifest(), "check"), "budget");
  if (expected.count("input") == 0) throw std::runtime_error(file + ": required the tensor input");
  const auto outputs = artifact.run(expected.at("input"));
  if (outputs.size() + 1 != expected.size()) {
    throw std::runtime_error(file + ": required an input and " + std::to_string(outputs.size()) + " outputs");
  }
  double error = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto right = expected.find("output_" + std::to_string(i));
    if (right == expected.end()) throw std::runtime_error(file + ": required the tensor output_" + std::to_string(i));
    error = std::max(error, relative_error(outputs[i], right->second));
  }
  const bool is_right = error <= budget;
  std::printf("relative error %.1e, budget %.0e: %s\n", error, budget, is_right ? "right" : "WRONG");
  return is_right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[2] : "";
  if (argc != 3 && !(argc == 4 && what == "noise")) {
    std::fprintf(stderr, "usage: %s ARTIFACT IMAGE.ppm | noise SIZE | check\n", argv[0]);
    return 2;
  }
  try {
    const bool is_image = argc == 3 && what != "check";
    const Image image = is_image ? read_ppm(what) : argc == 4 ? noise(argv[3]) : Image{};
    const Artifact artifact(argv[1]);
    if (argc == 3 && !is_image) return check(artifact);
    print_best(artifact.run(to_input(image, artifact)).at(0));
  } catch (const ffi::Error& error) {  // its what() has a trace of calls
    std::fprintf(stderr, "error: %s: %s\n", error.kind().c_str(), error.message().c_str());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
