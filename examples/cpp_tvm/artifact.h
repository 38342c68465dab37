// An artifact of `tvm-na compile --format tvm`: checked, loaded, run. Needs libtvm_ffi and nothing of PyTorch.
#pragma once

#include <dlfcn.h>
#include <sys/stat.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "machine.h"
#include "safetensors.h"

namespace tvm_na {

constexpr int64_t kFormatVersion = 2;

// A field of a JSON object; std::runtime_error if it is missing or something else than a T.
template <typename T>
T field(const ffi::json::Object& object, const std::string& name) {
  const auto found = object.find(ffi::String(name));
  if (found != object.end()) {
    if (auto value = (*found).second.template try_cast<T>()) return *value;
  }
  throw std::runtime_error("manifest.json: required the field " + name + " of format version " +
                           std::to_string(kFormatVersion) + ", got none or one of another type");
}

// "[1, 3, 64, 64]"; sizes that are null in a manifest are "batch".
template <typename Sizes>
std::string in_words(const Sizes& sizes) {
  std::ostringstream words;
  for (const ffi::Any& size : sizes) {
    words << (words.tellp() > 0 ? ", " : "");
    if (size == nullptr) words << "batch";
    else words << size.cast<int64_t>();
  }
  return "[" + words.str() + "]";
}

class Artifact {
 public:
  // Loads the artifact in a folder. Files are compared with the manifest by size only; `tvm-na check` and
  // tvm_na.load compare digests.
  explicit Artifact(const std::string& folder) : folder_(folder), manifest_(read_manifest(folder)) {
    check_machine();
    check_files();
    choose_threads();
    load_runtime();
    const auto weights = read_safetensors(folder_ + "/weights.safetensors");
    for (const ffi::Any& name : field<ffi::json::Array>(field<ffi::json::Object>(manifest_, "code"), "weights")) {
      const auto found = weights.find(name.cast<ffi::String>());
      if (found == weights.end()) {
        throw std::runtime_error("weights.safetensors: required the tensor " + std::string(name.cast<ffi::String>()));
      }
      arguments_.push_back(found->second);
    }
    // By name rather than as ffi::Module::LoadFromFile, so that its errors pass between C++ libraries.
    const auto load = ffi::Function::GetGlobalRequired("ffi.ModuleLoadFromFile");
    executable_ = load(folder_ + "/model.so").cast<ffi::Module>();
    machine_ = function(executable_, "vm_load_executable")().cast<ffi::Module>();
    constexpr int kPooledAllocator = 2;  // which keeps memory for the next call
    function(machine_, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    main_ = function(machine_, "main");
  }

  const ffi::json::Object& manifest() const { return manifest_; }
  const std::string& folder() const { return folder_; }

  // The model's outputs for an input of the shape and dtype that the manifest says, contiguous and aligned.
  std::vector<ffi::Tensor> run(const ffi::Tensor& input) const {
    check_input(input);
    std::vector<ffi::AnyView> arguments{input};
    arguments.insert(arguments.end(), arguments_.begin(), arguments_.end());
    ffi::Any found;
    main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &found);
    if (auto one = found.as<ffi::Tensor>()) return {*one};
    const auto outputs = found.cast<ffi::Array<ffi::Tensor>>();
    return {outputs.begin(), outputs.end()};
  }

 private:
  static ffi::json::Object read_manifest(const std::string& folder) {
    std::ifstream stream(folder + "/manifest.json", std::ios::binary);
    if (!stream) throw std::runtime_error(folder + ": required a folder with a manifest.json, got none");
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    ffi::String error;
    const auto parsed = ffi::json::Parse(text, &error).try_cast<ffi::json::Object>();
    if (!error.empty() || !parsed) throw std::runtime_error(folder + "/manifest.json: required a JSON object");
    if (field<ffi::String>(*parsed, "format") != "tvm_na artifact") {
      throw std::runtime_error(folder + "/manifest.json: required an artifact of tvm-na compile");
    }
    const auto version = field<int64_t>(*parsed, "format_version");
    if (version != kFormatVersion) {
      throw std::runtime_error(folder + "/manifest.json: required format version " + std::to_string(kFormatVersion) +
                               ", got " + std::to_string(version));
    }
    const std::string kind = field<ffi::String>(*parsed, "kind");
    if (kind != "tvm") throw std::runtime_error(folder + ": required an artifact of the format tvm, got " + kind);
    return *parsed;
  }

  void check_machine() const {
    const auto target = field<ffi::json::Object>(manifest_, "target");
    const std::string architecture = field<ffi::String>(target, "architecture");
    const std::string name = field<ffi::String>(target, "name");
    if (architecture != kArchitecture) {
      throw std::runtime_error(folder_ + ": required the architecture " + architecture + ", got " + kArchitecture);
    }
    for (const ffi::Any& feature : field<ffi::json::Array>(target, "cpu_features")) {
      const std::string wanted = feature.cast<ffi::String>();
      if (!has_feature(wanted)) {
        throw std::runtime_error(folder_ + ": required a CPU that runs " + name + ", got one without " + wanted);
      }
    }
    check_ffi(field<ffi::String>(field<ffi::json::Object>(manifest_, "requires"), "apache-tvm-ffi"));
  }

  // The library counts its development as the next version, so that a newer one of the same series must do.
  void check_ffi(const std::string& wanted) const {
    TVMFFIVersion here;
    TVMFFIGetVersion(&here);
    uint32_t major = 0, minor = 0, patch = 0;
    const int found = std::sscanf(wanted.c_str(), "%u.%u.%u", &major, &minor, &patch);
    if (found != 3 || major != here.major || minor != here.minor || patch > here.patch) {
      std::ostringstream got;
      got << here.major << "." << here.minor << "." << here.patch;
      throw std::runtime_error(folder_ + ": required libtvm_ffi " + wanted + " or newer of its series, got " +
                               got.str());
    }
  }

  void check_files() const {
    for (const auto& [key, about] : field<ffi::json::Object>(manifest_, "files")) {
      const std::string file = folder_ + "/" + std::string(key.cast<ffi::String>());
      const auto bytes = field<int64_t>(about.cast<ffi::json::Object>(), "bytes");
      struct stat found {};
      const int64_t size = stat(file.c_str(), &found) == 0 ? static_cast<int64_t>(found.st_size) : -1;
      if (size != bytes) {
        const std::string got = size < 0 ? "none" : std::to_string(size) + " bytes";
        throw std::runtime_error(file + ": required a file of " + std::to_string(bytes) + " bytes, got " + got);
      }
    }
  }

  // The artifact's own runtime, or where it has none that of the dynamic linker's path.
  void load_runtime() const {
    const std::string name = "libtvm_runtime.so", own = folder_ + "/" + name;
    const bool has_own = field<ffi::json::Object>(manifest_, "files").count(ffi::String(name)) > 0;
    // Global: the library of the model finds TVM's functions by name.
    const char* file = has_own ? own.c_str() : name.c_str();
    if (dlopen(file, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  }

  static ffi::Function function(const ffi::Module& module, const char* name) {
    const auto found = module->GetFunction(name);
    if (!found.has_value()) throw std::runtime_error(std::string("model.so: required the function ") + name);
    return found.value();
  }

  void check_input(const ffi::Tensor& input) const {
    const auto wanted = field<ffi::json::Object>(manifest_, "input");
    const auto shape = field<ffi::json::Array>(wanted, "shape");
    const std::string dtype = field<ffi::String>(wanted, "dtype");
    const std::vector<ffi::Any> sizes(input.shape().begin(), input.shape().end());
    bool fits = sizes.size() == shape.size();
    for (size_t i = 0; fits && i < sizes.size(); ++i) {
      fits = shape[i] == nullptr ? input.size(i) >= 1 : shape[i].cast<int64_t>() == input.size(i);
    }
    const std::string got = std::string(ffi::DLDataTypeToString(input.dtype())) + " " + in_words(sizes);
    if (!fits || dtype_of(dtype) != input.dtype() || !input.IsContiguous() || !input.IsAligned(kAlignment)) {
      throw std::runtime_error("input: required contiguous, aligned " + dtype + " " + in_words(shape) + ", got " + got);
    }
    const auto most = field<int64_t>(field<ffi::json::Object>(manifest_, "code"), "largest_batch");
    if (input.size(0) > most) {
      throw std::runtime_error("input: required a batch of at most " + std::to_string(most) + ", got " + got);
    }
  }

  std::string folder_;
  ffi::json::Object manifest_;
  std::vector<ffi::Tensor> arguments_;  // the weights, in the order in which the model takes them
  ffi::Module executable_{ffi::UnsafeInit()}, machine_{ffi::UnsafeInit()};
  ffi::Function main_;
};

}  // namespace tvm_na
