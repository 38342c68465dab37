// What the threads of a warp or a block do together.
#pragma once
#include "cuda_math.h"
#include "machine.h"

// Every collective knows its line in the source: that is what errors name.
#define EMU_LINE int line = __builtin_LINE()

inline void __syncthreads(EMU_LINE) { emu::block_barrier(emu::current, emu::barrier, false, line); }
inline int __syncthreads_count(int x, EMU_LINE) {
  return int(emu::block_barrier(emu::current, emu::barrier_count, x, line).yes);
}
inline int __syncthreads_or(int x, EMU_LINE) {
  return emu::block_barrier(emu::current, emu::barrier_or, x, line).yes != 0;
}
inline int __syncthreads_and(int x, EMU_LINE) {
  const emu::Votes votes = emu::block_barrier(emu::current, emu::barrier_and, x, line);
  return votes.yes == votes.threads;
}
inline void __syncwarp(unsigned mask = emu::full_warp, EMU_LINE) {
  emu::collective(emu::current, emu::warp_barrier, mask, nullptr, line);
}
inline unsigned __activemask(EMU_LINE) { return emu::active_lanes(emu::current, line); }
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

namespace emu {

inline unsigned first_lane(int width, int line) {
  if (width < 1 || width > 32 || width & (width - 1)) {
    fail(Fault::unsupported, line, "a shuffle of width %d, which is not a power of two up to 32", width);
  }
  return current->lane & ~unsigned(width - 1);
}

template <class T> T shuffle(const Operation& operation, unsigned mask, const T& value, unsigned source, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
  Shuffle call = {0, 0, source};
  memcpy(&call.value, &value, sizeof value);
  collective(current, operation, mask, &call, line);
  T result;
  memcpy(&result, &call.result, sizeof result);
  return result;
}

inline Vote vote(const Operation& operation, unsigned mask, bool yes, int line) {
  Vote call = {yes, 0, 0};
  collective(current, operation, mask, &call, line);
  return call;
}

// __reduce_*_sync: the combination of the values of all lanes in the mask.
template <class T, class Combine> struct Reduction {
  T value;
  static void run(uint32_t lanes, void* const* arguments) {
    T total = static_cast<Reduction*>(arguments[__builtin_ctz(lanes)])->value;
    for (uint32_t rest = lanes & (lanes - 1); rest; rest &= rest - 1) {
      total = Combine()(total, static_cast<Reduction*>(arguments[__builtin_ctz(rest)])->value);
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      static_cast<Reduction*>(arguments[__builtin_ctz(rest)])->value = total;
    }
  }
  static T of(const char* name, unsigned mask, T value, int line) {
    static const Operation operation = {name, Counter::shuffle, Scope::lanes, run};
    Reduction call = {value};
    collective(current, operation, mask, &call, line);
    return call.value;
  }
};

}  // namespace emu

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_LINE) {
  const unsigned first = emu::first_lane(width, line);
  return emu::shuffle(emu::shfl_idx, mask, value, first | (unsigned(source) & unsigned(width - 1)), line);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_LINE) {
  const unsigned first = emu::first_lane(width, line), own = emu::current->lane;
  return emu::shuffle(emu::shfl_up, mask, value, own - first >= delta ? own - delta : own, line);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_LINE) {
  const unsigned first = emu::first_lane(width, line), own = emu::current->lane;
  return emu::shuffle(emu::shfl_down, mask, value, own - first + delta < unsigned(width) ? own + delta : own, line);
}
// Lanes may look into the groups of `width` before their own, but not behind.
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_LINE) {
  const unsigned first = emu::first_lane(width, line), own = emu::current->lane, other = own ^ unsigned(bits);
  return emu::shuffle(emu::shfl_xor, mask, value, other < first + unsigned(width) ? other : own, line);
}

inline unsigned __ballot_sync(unsigned mask, int yes, EMU_LINE) {
  return emu::vote(emu::ballot, mask, yes, line).ballot;
}
inline int __any_sync(unsigned mask, int yes, EMU_LINE) {
  return emu::vote(emu::any_lane, mask, yes, line).ballot != 0;
}
inline int __all_sync(unsigned mask, int yes, EMU_LINE) {
  const emu::Vote call = emu::vote(emu::all_lanes, mask, yes, line);
  return call.ballot == call.lanes;
}

#define EMU_REDUCTION(name, combination)                                              \
  namespace emu {                                                                     \
  struct Combine_##name {                                                             \
    template <class T> T operator()(T a, T b) const { return combination; }           \
  };                                                                                  \
  }                                                                                   \
  template <class T> inline T name(unsigned mask, T value, EMU_LINE) {                \
    return emu::Reduction<T, emu::Combine_##name>::of(#name, mask, value, line);      \
  }
EMU_REDUCTION(__reduce_add_sync, a + b)
EMU_REDUCTION(__reduce_min_sync, a < b ? a : b)
EMU_REDUCTION(__reduce_max_sync, a > b ? a : b)
EMU_REDUCTION(__reduce_and_sync, a& b)
EMU_REDUCTION(__reduce_or_sync, a | b)
EMU_REDUCTION(__reduce_xor_sync, a ^ b)
#undef EMU_REDUCTION
#undef EMU_LINE
