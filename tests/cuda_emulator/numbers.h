// The two formats of 16 bits, to and from float and double.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>

namespace emu {

template <class To, class From> inline To cast(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast between unlike sizes");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

constexpr uint16_t nan16 = 0x7fff;  // what conversions on a GPU make of every NaN

// Rounds to nearest, ties to even. All of narrow() do.
template <class Format> inline uint16_t narrow_double(double value) {
  if (isnan(value)) return nan16;
  const double magnitude = fabs(value);
  if (isinf(value)) return Format::narrow(float(value));
  int exponent;
  frexp(magnitude, &exponent);
  if (exponent - 1 < Format::min_exponent) exponent = Format::min_exponent + 1;
  const double quantum = ldexp(1.0, exponent - 1 - Format::mantissa_bits);
  const double rounded = nearbyint(magnitude / quantum) * quantum;
  return Format::narrow(float(copysign(rounded, value)));
}

struct Binary16 {
  static constexpr int mantissa_bits = 10, min_exponent = -14;

  static float widen(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = uint32_t(bits & 0x7fff) << 13;
    const uint32_t special = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinity and NaN, without a branch
    return cast<float>(sign | special | cast<uint32_t>(cast<float>(magnitude) * 0x1p112f));  // exponents differ by 112
  }

  static uint16_t narrow(float value) {
    const uint32_t all = cast<uint32_t>(value), sign = all >> 16 & 0x8000, bits = all & 0x7fffffff;
    if (bits > 0x7f800000) return nan16;
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // from 65520 on
    if (bits < 0x38800000) {  // less than 2^-14: the last bit of 0.5 is the smallest half
      return uint16_t(sign | (cast<uint32_t>(cast<float>(bits) + 0.5f) - 0x3f000000));
    }
    return uint16_t(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
  }
  static uint16_t narrow(double value) { return narrow_double<Binary16>(value); }
};

struct Bfloat16 {
  static constexpr int mantissa_bits = 7, min_exponent = -126;

  static float widen(uint16_t bits) { return cast<float>(uint32_t(bits) << 16); }

  static uint16_t narrow(float value) {
    const uint32_t bits = cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return nan16;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static uint16_t narrow(double value) { return narrow_double<Bfloat16>(value); }
};

// Towards zero.
template <class Format> inline uint16_t truncate(float value) {
  const uint16_t nearest = Format::narrow(value);
  return fabsf(Format::widen(nearest)) > fabsf(value) ? uint16_t(nearest - 1) : nearest;
}

}  // namespace emu
