// CUDA's functions of numbers: bit casts, fast and rounded variants, integers, atomics. All are exact here.
#pragma once
#include <math.h>

#include <type_traits>

#include "cuda_half.h"

namespace emu {

template <class A, class B>
using Common = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value, std::common_type_t<A, B>>;

// A load and a compare-and-swap until it succeeds.
template <class T, class Update> inline T atomic_update(T* pointer, Update update) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  Bits* bits = reinterpret_cast<Bits*>(pointer);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, cast<Bits>(T(update(cast<T>(old)))), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return cast<T>(old);
}

inline float exp10_float(float x) { return float(pow(10.0, double(x))); }
inline float fast_divide(float x, float y) { return fabsf(y) > 0x1p126f && !isinf(y) ? x * 0 : x / y; }
inline float saturate(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

}  // namespace emu

// Of two numbers; one that is NaN counts for nothing.
template <class A, class B> inline emu::Common<A, B> max(A a, B b) {
  const emu::Common<A, B> x = a, y = b;
  return x > y || y != y ? x : y;
}
template <class A, class B> inline emu::Common<A, B> min(A a, B b) {
  const emu::Common<A, B> x = a, y = b;
  return x < y || y != y ? x : y;
}

// The C library has some of these names, so they are macros.
#define __expf(x) expf(x)
#define __exp10f(x) emu::exp10_float(x)
#define exp10f(x) emu::exp10_float(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(x, y) emu::fast_divide(x, y)
#define __saturatef(x) emu::saturate(x)
#define rsqrtf(x) (1.0f / sqrtf(x))
#define rsqrt(x) (1.0 / sqrt(x))
#define __frsqrt_rn(x) (1.0f / sqrtf(x))
#define __frcp_rn(x) (1.0f / (x))
#define __fsqrt_rn(x) sqrtf(x)
#define __fadd_rn(x, y) (float(x) + float(y))
#define __fsub_rn(x, y) (float(x) - float(y))
#define __fmul_rn(x, y) (float(x) * float(y))
#define __fdiv_rn(x, y) (float(x) / float(y))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")

inline float __int_as_float(int x) { return emu::cast<float>(x); }
inline int __float_as_int(float x) { return emu::cast<int>(x); }
inline float __uint_as_float(unsigned x) { return emu::cast<float>(x); }
inline unsigned __float_as_uint(float x) { return emu::cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emu::cast<double>(x); }
inline long long __double_as_longlong(double x) { return emu::cast<long long>(x); }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return unsigned(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __mulhi(int a, int b) { return int((long long)(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)(a) * b >> 32); }

template <class T> inline T __ldg(const T* pointer) { return *pointer; }
template <class T> inline T __ldcg(const T* pointer) { return *pointer; }
template <class T> inline T __ldcs(const T* pointer) { return *pointer; }
template <class T> inline void __stcg(T* pointer, T value) { *pointer = value; }
template <class T> inline void __stcs(T* pointer, T value) { *pointer = value; }

template <class T, class V> inline T atomicAdd(T* p, V v) {
  return emu::atomic_update(p, [v](T old) { return T(old + T(v)); });
}
template <class T, class V> inline T atomicMax(T* p, V v) {
  return emu::atomic_update(p, [v](T old) { return old > T(v) ? old : T(v); });
}
template <class T, class V> inline T atomicMin(T* p, V v) {
  return emu::atomic_update(p, [v](T old) { return old < T(v) ? old : T(v); });
}
template <class T, class V> inline T atomicExch(T* p, V v) {
  return emu::atomic_update(p, [v](T) { return T(v); });
}
template <class T> inline T atomicCAS(T* p, T expected, T value) {
  return emu::atomic_update(p, [=](T old) { return old == expected ? value : old; });
}
