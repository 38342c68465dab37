// CUDA C++ for g++: what a translated kernel includes in place of CUDA's own headers.
#pragma once
#include <climits>
#include <cstdint>
#include <cstring>

#include "cuda_math.h"
#include "cuda_types.h"
#include "cuda_warp.h"
#include "machine.h"

#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(bytes) alignas(bytes)
#define __restrict__  // other threads write while one waits, which the compiler must not rule out

#define threadIdx (emu::current->thread)
#define blockIdx (emu::current->block)
#define blockDim (emu::current->block_dim)
#define gridDim (emu::current->grid_dim)
constexpr int warpSize = 32;

inline size_t __cvta_generic_to_shared(const void* pointer, int line = __builtin_LINE()) {
  return emu::shared_address(pointer, line);
}
inline void __trap() { emu::fail(emu::Fault::arithmetic, 0, "__trap()"); }

namespace emu {

// `__shared__ T name[n];` becomes `auto& name = shared<T[n], alignment>(number, "name")`.
template <class T, size_t alignment> inline T& shared(int number, const char* name) {
  constexpr size_t natural = alignof(std::remove_all_extents_t<T>);
  return *static_cast<T*>(shared_array(number, name, sizeof(T), alignment > natural ? alignment : natural));
}
template <class T, size_t alignment> inline T* dynamic(const char* name) {
  return static_cast<T*>(dynamic_shared(name, alignment > 16 ? alignment : 16));
}

// Operands of inline assembly: bits go from one type to another of its size; between sizes, numbers do.
template <class T> inline uint32_t word(const T& value) { return cast<uint32_t>(value); }
template <class T, class V> inline void put(T& place, const V& value) {
  if constexpr (sizeof(T) == sizeof(V)) {
    place = cast<T>(value);
  } else {
    place = T(value);
  }
}

template <class T> inline T* at_global(void* base, long offset, int line) {
  char* pointer = static_cast<char*>(base) + offset;
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(T)) {
    fail(Fault::misaligned, line, "ld or st at a global address that is not a multiple of %zu", sizeof(T));
  }
  return reinterpret_cast<T*>(pointer);
}
template <class T> inline T* at_shared(uint32_t address, int line) {
  return reinterpret_cast<T*>(shared_pointer(address, sizeof(T), sizeof(T), "ld or st", line));
}
template <class T, int n> struct alignas(sizeof(T) * n) Vector {
  T lane[n];
};

// cvt of two numbers to a register of 32 bits; the first is the higher half.
template <class T> inline uint32_t pack(float high, float low) {
  return uint32_t(T(high).bits) << 16 | T(low).bits;
}
// cvt.rna.tf32: to nearest, ties away from zero.
inline uint32_t tf32(float value) {
  const uint32_t bits = cast<uint32_t>(value);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000u;
}

}  // namespace emu
