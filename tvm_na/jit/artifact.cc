// The operators of an artifact: compiled kernels behind torch operators, without TVM.
//
// Linked with the kernels' objects and parallel.cc into one library that needs PyTorch alone. What a kernel wants of
// TVM's runtime is here: where to report an error, where to run parallel loops, where to get memory. The library
// exports one function; registering the operators happens when it is loaded.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/library.h>
#include <tvm/ffi/c_api.h>

#include <array>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.inc"  // generated: TVM_NA_ATTENTIONS, TVM_NA_PRODUCTS, TVM_NA_REQUIRED_FEATURES, kFlopsPerThread

extern "C" {
void tvm_na_use_openmp(void* gomp_parallel, void* omp_in_parallel);
void tvm_na_set_threads(int threads);
int tvm_na_parallel_launch(int (*lambda)(int, void*, void*), void* data, int num_task);

#define DECLARE(name, ...) int __tvm_ffi_##name(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
TVM_NA_ATTENTIONS(DECLARE)
TVM_NA_PRODUCTS(DECLARE)
#undef DECLARE
}

namespace {

thread_local std::string last_error;

constexpr size_t kAlignment = 64;  // bytes; kernels assume it and do not check

struct Kernel {
  TVMFFISafeCallType function;
  at::ScalarType dtype;
  int64_t flops;    // per sample
  int64_t samples;  // the largest batch of one call: kernels count elements in 32 bits
  const char* problem;
};

struct Attention : Kernel {
  int64_t dims;  // of query: batch, spatial axes, heads, head_dim
  int64_t head_dim_v;
};

using Sizes = std::vector<int64_t>;

struct Product : Kernel {
  at::ScalarType weight_dtype;
  Sizes in, out;  // of a sample: spatial axes, channels; a linear layer's tokens may come on any number of axes

  bool is_linear() const { return in.size() == 2; }
};

#define ENTRY(name, dtype, flops, samples, problem, ...) \
  {{__tvm_ffi_##name, dtype, flops, samples, problem}, __VA_ARGS__},
const std::vector<Attention> kAttentions = {TVM_NA_ATTENTIONS(ENTRY)};
const std::vector<Product> kProducts = {TVM_NA_PRODUCTS(ENTRY)};
#undef ENTRY

template <typename T>
const T& numbered(const std::vector<T>& kernels, int64_t number) {
  int64_t count = kernels.size();
  TORCH_CHECK(0 <= number && number < count, "kernel: required 0 to ", count - 1, ", got ", number);
  return kernels[number];
}

void* allocate_workspace(int, int, uint64_t bytes, int, int) {
  void* memory = nullptr;
  return posix_memalign(&memory, kAlignment, bytes ? bytes : kAlignment) ? nullptr : memory;
}

int free_workspace(int, int, void* memory) {
  free(memory);
  return 0;
}

// Kernels run on the threads of the OpenMP library that PyTorch was linked with; a second library's would wait on the
// cores that the first one's compute on.
void use_pytorch_threads() {
  void* torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  void* from = torch ? torch : RTLD_DEFAULT;
  void* parallel = dlsym(from, "GOMP_parallel");
  void* in_parallel = dlsym(from, "omp_in_parallel");
  TORCH_CHECK(parallel && in_parallel, "tvm_na: required a PyTorch with OpenMP, got one without GOMP_parallel");
  tvm_na_use_openmp(parallel, in_parallel);
}

// As a kernel can read it: no lazy negation, contiguous, aligned.
at::Tensor ready(const at::Tensor& tensor) {
  at::Tensor plain = tensor.resolve_neg().contiguous();
  bool aligned = reinterpret_cast<uintptr_t>(plain.const_data_ptr()) % kAlignment == 0;
  return aligned ? plain : plain.clone(at::MemoryFormat::Contiguous);
}

DLTensor view(const at::Tensor& tensor) {
  DLTensor out{};
  out.data = const_cast<void*>(tensor.const_data_ptr());
  out.device = {kDLCPU, 0};
  out.ndim = static_cast<int32_t>(tensor.dim());
  auto type = tensor.scalar_type();
  uint8_t code = type == at::kChar || type == at::kInt ? kDLInt : type == at::kBFloat16 ? kDLBfloat : kDLFloat;
  out.dtype = {code, static_cast<uint8_t>(tensor.element_size() * 8), 1};
  out.shape = const_cast<int64_t*>(tensor.sizes().data());
  out.strides = const_cast<int64_t*>(tensor.strides().data());
  return out;
}

void call(const Kernel& kernel, at::ArrayRef<DLTensor*> tensors, int64_t batch) {
  static const bool threads_found = (use_pytorch_threads(), true);
  (void)threads_found;
  int64_t worth = std::max<int64_t>(1, kernel.flops * batch / kFlopsPerThread);
  tvm_na_set_threads(static_cast<int>(std::min<int64_t>(at::get_num_threads(), worth)));
  std::array<TVMFFIAny, 7> arguments{};
  for (size_t i = 0; i < tensors.size(); ++i) {
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = tensors[i];
  }
  TVMFFIAny result{};
  last_error = "out of memory";
  int status = kernel.function(nullptr, arguments.data(), static_cast<int32_t>(tensors.size()), &result);
  TORCH_CHECK(status == 0, "tvm_na: the kernel of ", kernel.problem, " failed: ", last_error);
}

using Outputs = std::tuple<at::Tensor, at::Tensor>;

Outputs run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
            const std::optional<at::Tensor>& rpb, double scale, int64_t index, bool with_lse) {
  const Attention& kernel = numbered(kAttentions, index);
  for (const auto* t : {&query, &key, &value}) {
    TORCH_CHECK(t->scalar_type() == kernel.dtype, "query, key, value: required ", kernel.dtype, " for ",
                kernel.problem, ", got ", t->scalar_type());
    TORCH_CHECK(t->dim() == kernel.dims, "query, key, value: required ", kernel.dims, " dimensions for ",
                kernel.problem, ", got ", t->dim());
  }
  auto sizes = query.sizes().vec();
  int64_t batch = sizes[0];
  sizes.back() = kernel.head_dim_v;
  at::Tensor out = at::empty(sizes, query.options());
  sizes.pop_back();
  bool is_double = kernel.dtype == at::kDouble;
  auto lse_options = query.options().dtype(is_double ? at::kDouble : at::kFloat);  // that of the sums
  at::Tensor lse = with_lse ? at::empty(sizes, lse_options) : at::Tensor();
  if (batch == 0) return {out, lse};
  if (batch > kernel.samples) {
    for (int64_t first = 0; first < batch; first += kernel.samples) {
      int64_t length = std::min(kernel.samples, batch - first);
      auto part = [&](const at::Tensor& t) { return t.narrow(0, first, length); };
      auto [part_out, part_lse] = run(part(query), part(key), part(value), rpb, scale, index, with_lse);
      part(out).copy_(part_out);
      if (with_lse) part(lse).copy_(part_lse);
    }
    return {out, lse};
  }
  alignas(kAlignment) double factor64 = scale;
  alignas(kAlignment) float factor32 = static_cast<float>(scale);
  int64_t one = 1;
  DLTensor factor{};
  factor.data = is_double ? static_cast<void*>(&factor64) : &factor32;
  factor.device = {kDLCPU, 0};
  factor.ndim = 1;
  factor.dtype = {kDLFloat, static_cast<uint8_t>(is_double ? 64 : 32), 1};
  factor.shape = factor.strides = &one;
  // These must outlive the call, since views point into them.
  at::Tensor q = ready(query), k = ready(key), v = ready(value), bias = rpb ? ready(*rpb) : at::Tensor();
  DLTensor views[] = {view(q), view(k), view(v), factor, rpb ? view(bias) : DLTensor{}, view(out),
                      with_lse ? view(lse) : DLTensor{}};
  c10::SmallVector<DLTensor*, 7> arguments{&views[0], &views[1], &views[2], &views[3]};
  if (rpb) arguments.push_back(&views[4]);
  arguments.push_back(&views[5]);
  if (with_lse) arguments.push_back(&views[6]);
  call(kernel, arguments, batch);
  return {out, lse};
}

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const std::optional<at::Tensor>& rpb, double scale, int64_t kernel) {
  return std::get<0>(run(query, key, value, rpb, scale, kernel, false));
}

Outputs attend_lse(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   const std::optional<at::Tensor>& rpb, double scale, int64_t kernel) {
  return run(query, key, value, rpb, scale, kernel, true);
}

at::Tensor dense(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& weight_scale,
                 const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual, int64_t number) {
  const Product& kernel = numbered(kProducts, number);
  TORCH_CHECK(weight.scalar_type() == kernel.weight_dtype, "weight: required ", kernel.weight_dtype, " for ",
              kernel.problem, ", got ", weight.scalar_type());
  for (const auto& t : {std::optional(x), weight_scale, bias, residual}) {
    TORCH_CHECK(!t || t->scalar_type() == kernel.dtype, "x, weight_scale, bias, residual: required ", kernel.dtype,
                " for ", kernel.problem, ", got ", t->scalar_type());
  }
  bool fits = x.dim() >= 2 && x.size(-1) == kernel.in.back();
  if (kernel.is_linear()) {
    TORCH_CHECK(fits && x.numel() == x.size(0) * kernel.in[0] * kernel.in[1], "x: required [batch, ...] with ",
                kernel.in[0], " tokens of ", kernel.in[1], " channels for ", kernel.problem, ", got ", x.sizes());
  } else {
    TORCH_CHECK(fits && x.sizes().slice(1) == at::IntArrayRef(kernel.in), "x: required [batch, *", at::IntArrayRef(kernel.in), "] for ",
                kernel.problem, ", got ", x.sizes());
  }
  auto sizes = x.sizes().vec();
  int64_t batch = sizes[0];
  if (!kernel.is_linear()) std::copy(kernel.out.begin(), kernel.out.end(), sizes.begin() + 1);
  sizes.back() = kernel.out.back();
  TORCH_CHECK(!residual || residual->sizes() == sizes, "residual: required ", at::IntArrayRef(sizes), " for ",
              kernel.problem, ", got ", residual->sizes());
  at::Tensor out = at::empty(sizes, x.options());
  if (batch > kernel.samples) {
    for (int64_t first = 0; first < batch; first += kernel.samples) {
      auto part = [&](const at::Tensor& t) { return t.narrow(0, first, std::min(kernel.samples, batch - first)); };
      auto addend = residual ? std::optional(part(*residual)) : residual;
      part(out).copy_(dense(part(x), weight, weight_scale, bias, addend, number));
    }
    return out;
  }
  if (batch == 0) return out;
  auto samples = [&](const at::Tensor& t, const Sizes& of_sample) {
    Sizes all{batch};
    all.insert(all.end(), of_sample.begin(), of_sample.end());
    return t.view(all);
  };
  // As in `run`, these must outlive the call.
  at::Tensor in = samples(ready(x), kernel.in), packed = ready(weight), to = samples(out, kernel.out);
  at::Tensor factor = weight_scale ? ready(*weight_scale) : at::Tensor();
  at::Tensor shift = bias ? ready(*bias) : at::Tensor();
  at::Tensor addend = residual ? samples(ready(*residual), kernel.out) : at::Tensor();
  std::array<DLTensor, 6> views;
  c10::SmallVector<DLTensor*, 6> arguments;
  for (const at::Tensor* t : {&in, &packed, &factor, &shift, &addend, &to}) {
    if (!t->defined()) continue;
    views[arguments.size()] = view(*t);
    arguments.push_back(&views[arguments.size()]);
  }
  call(kernel, arguments, batch);
  return out;
}

}  // namespace

extern "C" {

// What kernels call through these pointers; each object has a weak one of each, of which these take the place.
int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int) = tvm_na_parallel_launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = free_workspace;

// What kernels call when an argument is not what they were compiled for.
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  last_error = std::string(kind) + ": ";
  for (int32_t i = 0; i < count; ++i) last_error += parts[i];
}

// Null if this CPU runs the artifact's code, else the feature that it lacks. Ask before the model is loaded.
__attribute__((visibility("default"))) const char* tvm_na_missing_feature() {
#define REQUIRE(feature) \
  if (!__builtin_cpu_supports(feature)) return feature;
  TVM_NA_REQUIRED_FEATURES(REQUIRE)
#undef REQUIRE
  return nullptr;
}
}

// A macro of its own, so that the namespace is replaced by its value before it becomes part of names.
#define REGISTER(space, library) TORCH_LIBRARY(space, library)
REGISTER(TVM_NA_NAMESPACE, library) {
#define ARGUMENTS "(Tensor query, Tensor key, Tensor value, Tensor? rpb, float scale, int kernel)"
  library.def("attend" ARGUMENTS " -> Tensor");
  library.def("attend_lse" ARGUMENTS " -> (Tensor, Tensor)");
  library.impl("attend", torch::dispatch(at::kCPU, TORCH_FN(attend)));
  library.impl("attend_lse", torch::dispatch(at::kCPU, TORCH_FN(attend_lse)));
#undef ARGUMENTS
  library.def("dense(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? bias, Tensor? residual, int kernel) -> Tensor");
  library.impl("dense", torch::dispatch(at::kCPU, TORCH_FN(dense)));
}
