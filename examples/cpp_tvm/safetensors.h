// A safetensors file as tensors of TVM: memory of the file itself where it is aligned, copies elsewhere.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace tvm_na {

namespace ffi = tvm::ffi;

constexpr size_t kAlignment = 64;  // bytes; compiled code relies on it and does not check
constexpr DLDevice kCpu{kDLCPU, 0};

// An allocator, as Tensor::FromNDAlloc takes it, of aligned memory.
struct Aligned {
  void AllocData(DLTensor* tensor) {
    const size_t bytes = (ffi::GetDataSize(*tensor) / kAlignment + 1) * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, bytes);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// A file in memory, as long as somebody holds it.
class MappedFile {
 public:
  explicit MappedFile(const std::string& file) {
    const int descriptor = open(file.c_str(), O_RDONLY);
    struct stat about {};
    if (descriptor < 0 || fstat(descriptor, &about) != 0 || about.st_size == 0) {
      if (descriptor >= 0) close(descriptor);
      throw std::runtime_error(file + ": required a file with content, got none");
    }
    size_ = static_cast<size_t>(about.st_size);
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED) throw std::runtime_error(file + ": cannot be mapped");
    data_ = static_cast<char*>(memory);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { munmap(data_, size_); }
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_;
  size_t size_;
};

// An "allocator" whose memory is that of a file.
struct InFile {
  std::shared_ptr<MappedFile> file;
  char* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

inline DLDataType dtype_of(const std::string& name) {
  if (name == "F32" || name == "float32") return {kDLFloat, 32, 1};
  if (name == "F64" || name == "float64") return {kDLFloat, 64, 1};
  if (name == "I32") return {kDLInt, 32, 1};
  if (name == "I64") return {kDLInt, 64, 1};
  if (name == "BOOL") return {kDLBool, 8, 1};
  throw std::runtime_error("required a dtype of F32, F64, I32, I64, BOOL, got " + name);
}

// One tensor, described by its entry in the header; `begin` is where the file's data begins.
inline ffi::Tensor tensor_of(const std::shared_ptr<MappedFile>& file, size_t begin, const ffi::json::Object& entry) {
  const DLDataType dtype = dtype_of(entry.at(ffi::String("dtype")).cast<ffi::String>());
  std::vector<int64_t> shape;
  uint64_t bytes = dtype.bits / 8;
  for (const ffi::Any& size : entry.at(ffi::String("shape")).cast<ffi::json::Array>()) {
    shape.push_back(size.cast<int64_t>());
    bytes *= static_cast<uint64_t>(shape.back());
  }
  const auto offsets = entry.at(ffi::String("data_offsets")).cast<ffi::json::Array>();
  const auto first = offsets[0].cast<uint64_t>(), end = offsets[1].cast<uint64_t>();
  if (first > end || end > file->size() - begin || bytes != end - first) {
    throw std::runtime_error("required tensors inside of the file, of the size that their shapes say");
  }
  char* data = file->data() + begin + first;
  const ffi::ShapeView sizes(shape.data(), shape.size());
  if (reinterpret_cast<uintptr_t>(data) % kAlignment == 0) {
    return ffi::Tensor::FromNDAlloc(InFile{file, data}, sizes, dtype, kCpu);
  }
  ffi::Tensor copy = ffi::Tensor::FromNDAlloc(Aligned(), sizes, dtype, kCpu);
  std::memcpy(copy.data_ptr(), data, bytes);
  return copy;
}

// The tensors of a safetensors file by name; std::runtime_error if it is none.
inline std::map<std::string, ffi::Tensor> read_safetensors(const std::string& name) {
  auto file = std::make_shared<MappedFile>(name);
  std::map<std::string, ffi::Tensor> tensors;
  try {
    uint64_t length = 0;
    if (file->size() < sizeof(length)) throw std::runtime_error("required 8 bytes or more");
    std::memcpy(&length, file->data(), sizeof(length));
    if (length > file->size() - sizeof(length)) throw std::runtime_error("required a header inside of the file");
    ffi::String error;
    const auto header = ffi::json::Parse(ffi::String(file->data() + sizeof(length), length), &error);
    if (!error.empty()) throw std::runtime_error(error);
    for (const auto& [key, entry] : header.cast<ffi::json::Object>()) {
      const std::string tensor = key.cast<ffi::String>();
      if (tensor == "__metadata__") continue;
      tensors.emplace(tensor, tensor_of(file, sizeof(length) + length, entry.cast<ffi::json::Object>()));
    }
  } catch (const ffi::Error& error) {  // of another JSON type, or a key is missing
    throw std::runtime_error(name + ": required a safetensors file, got " + error.message());
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(name + ": required a safetensors file, got a damaged one: " + error.what());
  }
  return tensors;
}

}  // namespace tvm_na
