// half and nv_bfloat16, their pairs, and their functions. Arithmetic is that of float, rounded once.
#pragma once
#include <type_traits>

#include "cuda_types.h"
#include "numbers.h"

namespace emu {

template <class Format> struct Narrow {
  uint16_t bits;

  Narrow() = default;
  Narrow(float value) : bits(Format::narrow(value)) {}
  Narrow(double value) : bits(Format::narrow(value)) {}
  template <class T, class = std::enable_if_t<std::is_integral<T>::value>>
  Narrow(T value) : bits(Format::narrow(double(value))) {}
  static Narrow of_bits(uint16_t bits) {
    Narrow result;
    result.bits = bits;
    return result;
  }

  operator float() const { return Format::widen(bits); }
  operator float() const volatile { return Format::widen(bits); }
  template <class T> Narrow& operator=(const T& value) volatile {
    bits = Narrow(value).bits;
    return const_cast<Narrow&>(*this);
  }

  friend Narrow operator+(const Narrow& a, const Narrow& b) { return float(a) + float(b); }
  friend Narrow operator-(const Narrow& a, const Narrow& b) { return float(a) - float(b); }
  friend Narrow operator*(const Narrow& a, const Narrow& b) { return float(a) * float(b); }
  friend Narrow operator/(const Narrow& a, const Narrow& b) { return float(a) / float(b); }
  friend Narrow operator+(const Narrow& a) { return a; }
  friend Narrow operator-(const Narrow& a) { return of_bits(uint16_t(a.bits ^ 0x8000)); }
  friend Narrow& operator+=(Narrow& a, const Narrow& b) { return a = a + b; }
  friend Narrow& operator-=(Narrow& a, const Narrow& b) { return a = a - b; }
  friend Narrow& operator*=(Narrow& a, const Narrow& b) { return a = a * b; }
  friend Narrow& operator/=(Narrow& a, const Narrow& b) { return a = a / b; }
  friend bool operator==(const Narrow& a, const Narrow& b) { return float(a) == float(b); }
  friend bool operator!=(const Narrow& a, const Narrow& b) { return float(a) != float(b); }
  friend bool operator<(const Narrow& a, const Narrow& b) { return float(a) < float(b); }
  friend bool operator<=(const Narrow& a, const Narrow& b) { return float(a) <= float(b); }
  friend bool operator>(const Narrow& a, const Narrow& b) { return float(a) > float(b); }
  friend bool operator>=(const Narrow& a, const Narrow& b) { return float(a) >= float(b); }
};

template <class Format> struct alignas(4) Pair {
  Narrow<Format> x, y;

  Pair() = default;
  Pair(Narrow<Format> x, Narrow<Format> y) : x(x), y(y) {}
  friend Pair operator+(const Pair& a, const Pair& b) { return {a.x + b.x, a.y + b.y}; }
  friend Pair operator-(const Pair& a, const Pair& b) { return {a.x - b.x, a.y - b.y}; }
  friend Pair operator*(const Pair& a, const Pair& b) { return {a.x * b.x, a.y * b.y}; }
  friend Pair operator/(const Pair& a, const Pair& b) { return {a.x / b.x, a.y / b.y}; }
  friend Pair operator-(const Pair& a) { return {-a.x, -a.y}; }
};

template <class F> Narrow<F> larger(Narrow<F> a, Narrow<F> b) { return float(b) != float(b) || a > b ? a : b; }
template <class F> Narrow<F> smaller(Narrow<F> a, Narrow<F> b) { return float(b) != float(b) || a < b ? a : b; }

}  // namespace emu

using half = emu::Narrow<emu::Binary16>;
using half2 = emu::Pair<emu::Binary16>;
using nv_bfloat16 = emu::Narrow<emu::Bfloat16>;
using nv_bfloat162 = emu::Pair<emu::Bfloat16>;
using __half = half;
using __half2 = half2;
using __nv_bfloat16 = nv_bfloat16;
using __nv_bfloat162 = nv_bfloat162;

// Functions of both formats.
#define EMU_FUNCTION(name, value) \
  template <class F> inline emu::Narrow<F> name(emu::Narrow<F> h) { float x = h; return value; }
EMU_FUNCTION(__habs, fabsf(x))
EMU_FUNCTION(__hneg, -x)
EMU_FUNCTION(hexp, expf(x))
EMU_FUNCTION(hexp2, exp2f(x))
EMU_FUNCTION(hexp10, float(pow(10.0, x)))
EMU_FUNCTION(hlog, logf(x))
EMU_FUNCTION(hlog2, log2f(x))
EMU_FUNCTION(hlog10, log10f(x))
EMU_FUNCTION(hsqrt, sqrtf(x))
EMU_FUNCTION(hrsqrt, 1 / sqrtf(x))
EMU_FUNCTION(hrcp, 1 / x)
EMU_FUNCTION(hsin, sinf(x))
EMU_FUNCTION(hcos, cosf(x))
EMU_FUNCTION(htanh, tanhf(x))
EMU_FUNCTION(hfloor, floorf(x))
EMU_FUNCTION(hceil, ceilf(x))
EMU_FUNCTION(htrunc, truncf(x))
EMU_FUNCTION(hrint, rintf(x))
#undef EMU_FUNCTION

// Functions of two numbers, and of two pairs.
#define EMU_FUNCTION(name, value)                                                                     \
  template <class F> inline emu::Narrow<F> name(emu::Narrow<F> a, emu::Narrow<F> b) { return value; } \
  template <class F> inline emu::Pair<F> name##2(emu::Pair<F> a, emu::Pair<F> b) {                    \
    return {name(a.x, b.x), name(a.y, b.y)};                                                          \
  }
EMU_FUNCTION(__hadd, a + b)
EMU_FUNCTION(__hsub, a - b)
EMU_FUNCTION(__hmul, a * b)
EMU_FUNCTION(__hmax, emu::larger(a, b))
EMU_FUNCTION(__hmin, emu::smaller(a, b))
#undef EMU_FUNCTION
template <class F> inline emu::Narrow<F> __hdiv(emu::Narrow<F> a, emu::Narrow<F> b) { return a / b; }
template <class F> inline emu::Pair<F> __h2div(emu::Pair<F> a, emu::Pair<F> b) { return a / b; }
template <class F> inline emu::Narrow<F> __hfma(emu::Narrow<F> a, emu::Narrow<F> b, emu::Narrow<F> c) {
  return fma(double(float(a)), double(float(b)), double(float(c)));
}
template <class F> inline emu::Pair<F> __hfma2(emu::Pair<F> a, emu::Pair<F> b, emu::Pair<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

#define EMU_COMPARISON(name, comparison) \
  template <class F> inline bool name(emu::Narrow<F> a, emu::Narrow<F> b) { return a comparison b; }
EMU_COMPARISON(__heq, ==)
EMU_COMPARISON(__hne, !=)
EMU_COMPARISON(__hlt, <)
EMU_COMPARISON(__hle, <=)
EMU_COMPARISON(__hgt, >)
EMU_COMPARISON(__hge, >=)
#undef EMU_COMPARISON
template <class F> inline bool __hisnan(emu::Narrow<F> a) { return a != a; }
template <class F> inline int __hisinf(emu::Narrow<F> a) { return isinf(float(a)) ? (float(a) > 0 ? 1 : -1) : 0; }

// Conversions: `name` as it stands within CUDA's names, and the types of one number and of a pair.
#define EMU_CONVERSIONS(name, T, T2)                                                              \
  inline T __float2##name(float x) { return x; }                                                  \
  inline T __float2##name##_rn(float x) { return x; }                                             \
  inline T __float2##name##_rz(float x) { return T::of_bits(emu::truncate<emu::T##_format>(x)); } \
  inline T __double2##name(double x) { return x; }                                                \
  inline T __int2##name##_rn(int x) { return x; }                                                 \
  inline T __uint2##name##_rn(unsigned x) { return x; }                                           \
  inline T __short2##name##_rn(short x) { return x; }                                             \
  inline T __ushort2##name##_rn(unsigned short x) { return x; }                                   \
  inline T __ll2##name##_rn(long long x) { return x; }                                            \
  inline float __##name##2float(T x) { return x; }                                                \
  inline int __##name##2int_rz(T x) { return int(float(x)); }                                     \
  inline int __##name##2int_rn(T x) { return int(rintf(x)); }                                     \
  inline unsigned __##name##2uint_rz(T x) { return unsigned(float(x)); }                          \
  inline unsigned short __##name##_as_ushort(T x) { return x.bits; }                              \
  inline short __##name##_as_short(T x) { return short(x.bits); }                                 \
  inline T __ushort_as_##name(unsigned short x) { return T::of_bits(x); }                         \
  inline T __short_as_##name(short x) { return T::of_bits(uint16_t(x)); }                         \
  inline T2 __float2##name##2_rn(float x) { return {x, x}; }                                      \
  inline T2 __floats2##name##2_rn(float x, float y) { return {x, y}; }                            \
  inline T2 __float22##name##2_rn(float2 x) { return {x.x, x.y}; }                                \
  inline float2 __##name##22float2(T2 x) { return {x.x, x.y}; }                                   \
  inline T2 __##name##2##name##2(T x) { return {x, x}; }                                          \
  inline T2 __halves2##name##2(T x, T y) { return {x, y}; }                                       \
  inline T __low2##name(T2 x) { return x.x; }                                                     \
  inline T __high2##name(T2 x) { return x.y; }                                                    \
  inline T2 make_##name##2(T x, T y) { return {x, y}; }
namespace emu {
using half_format = Binary16;
using nv_bfloat16_format = Bfloat16;
}  // namespace emu
EMU_CONVERSIONS(half, half, half2)
EMU_CONVERSIONS(bfloat16, nv_bfloat16, nv_bfloat162)
#undef EMU_CONVERSIONS
template <class F> inline float __low2float(emu::Pair<F> x) { return x.x; }
template <class F> inline float __high2float(emu::Pair<F> x) { return x.y; }
