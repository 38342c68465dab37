// Memory for the weights of a model that AOTInductor compiled, which takes them from malloc: aligned as kernels want it.
//
// Linked into the model's library, for whose own calls it takes the place of the C library's function: that aligns to
// 16 bytes, and an operator would have to copy each weight at every call. The compiler knows malloc as a function that
// libraries offer to others, which this must not be, so it has that name for the linker alone.
#include <cstddef>
#include <cstdlib>

extern "C" __attribute__((visibility("hidden"))) void* tvm_na_malloc(std::size_t bytes) asm("malloc");

void* tvm_na_malloc(std::size_t bytes) {
  constexpr std::size_t alignment = 64;
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
