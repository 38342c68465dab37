// What the lanes of a warp do together: shuffles, votes, ldmatrix and mma.
#include <cstring>

#include "numbers.h"
#include "scheduler.h"

namespace emu {
namespace {

constexpr uint64_t undefined = ~0ull;  // NaN, or -1: what a lane has that takes no part

void shuffle(uint32_t lanes, void* const* arguments) {
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Shuffle& own = *static_cast<Shuffle*>(arguments[__builtin_ctz(rest)]);
    const bool given = own.source < 32 && lanes >> own.source & 1;
    own.result = given ? static_cast<const Shuffle*>(arguments[own.source])->value : undefined;
  }
}

void vote(uint32_t lanes, void* const* arguments) {
  uint32_t yes = 0;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    yes |= uint32_t(static_cast<const Vote*>(arguments[lane])->yes) << lane;
  }
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Vote& own = *static_cast<Vote*>(arguments[__builtin_ctz(rest)]);
    own.ballot = yes;
    own.lanes = lanes;
  }
}

void nothing(uint32_t, void* const*) {}

// Rows of 16 bytes, whose addresses lanes 8 m to 8 m + 7 bring for matrix m. Lane l gets two of its numbers: those
// in columns 2 (l % 4) and the next of row l / 4, of the transposed matrix if so asked.
void load_matrices(uint32_t, void* const* arguments) {
  LdMatrix* loads[32];
  for (int lane = 0; lane < 32; ++lane) loads[lane] = static_cast<LdMatrix*>(arguments[lane]);
  for (int m = 0; m < loads[0]->count; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const LdMatrix& load = *loads[8 * m + row];
      memcpy(matrix[row], shared_pointer(load.address, 16, 16, "ldmatrix", load.line), 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) pair[i] = loads[0]->transposed ? matrix[column + i][row] : matrix[row][column + i];
      memcpy(&loads[lane]->result[m], pair, 4);
    }
  }
}

// One number of a fragment's registers, which hold two each, or one of tf32: that ignores 13 bits.
template <int wide> uint32_t bits(const uint32_t* registers, int i) {
  return wide == 1 ? registers[i] & 0xffffe000u : registers[i / 2] >> (i % 2 * 16) & 0xffff;
}

// A row of a matrix at a time, which the compiler makes vector instructions of.
template <Element element> void widen(const uint32_t (&from)[16], float (&to)[16]) {
  for (int i = 0; i < 16; ++i) {
    const uint16_t low = uint16_t(from[i]);
    to[i] = element == Element::tf32   ? cast<float>(from[i])
            : element == Element::bf16 ? Bfloat16::widen(low)
                                       : Binary16::widen(low);
  }
}

using Row = float __attribute__((vector_size(32)));  // of C: 8 numbers

// C (16 x 8) += A (16 x depth) B (depth x 8). Group lane / 4 has rows of A and C, and a column of B. Along the depth,
// a lane has `wide` neighboring numbers of each `4 * wide`.
template <Element element> void multiply(Mma* const (&lanes)[32]) {
  constexpr int wide = element == Element::tf32 ? 1 : 2;
  const int depth = lanes[0]->depth;
  uint32_t a[16][16] = {}, b[8][16] = {};  // b is transposed
  float rows[16][16], columns[8][16];
  Row transposed[16], c[16];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& own = *lanes[lane];
    const int group = lane / 4;
    for (int step = 0; step < depth / wide / 4; ++step) {
      for (int i = 0; i < wide; ++i) {
        const int k = (step * 4 + lane % 4) * wide + i;
        a[group][k] = bits<wide>(own.a, 2 * step * wide + i);
        a[group + 8][k] = bits<wide>(own.a, (2 * step + 1) * wide + i);
        b[group][k] = bits<wide>(own.b, step * wide + i);
      }
    }
    for (int i = 0; i < 4; ++i) c[group + i / 2 * 8][lane % 4 * 2 + i % 2] = own.c[i];
  }
  for (int row = 0; row < 16; ++row) widen<element>(a[row], rows[row]);
  for (int column = 0; column < 8; ++column) {
    widen<element>(b[column], columns[column]);
    for (int k = 0; k < 16; ++k) transposed[k][column] = columns[column][k];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) c[row] += rows[row][k] * transposed[k];
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) lanes[lane]->d[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

void multiply_any(uint32_t, void* const* arguments) {
  Mma* lanes[32];
  for (int lane = 0; lane < 32; ++lane) lanes[lane] = static_cast<Mma*>(arguments[lane]);
  switch (lanes[0]->element) {
    case Element::f16: return multiply<Element::f16>(lanes);
    case Element::bf16: return multiply<Element::bf16>(lanes);
    case Element::tf32: return multiply<Element::tf32>(lanes);
  }
}

// Lanes that meet at one line are at one instruction, so kinds and depths agree.
const Operation mma_operation = {"mma", Counter::mma, Scope::warp, multiply_any};
const Operation ldmatrix_operation = {"ldmatrix", Counter::ldmatrix, Scope::warp, load_matrices};

}  // namespace

const Operation shfl_idx = {"__shfl_sync", Counter::shuffle, Scope::lanes, shuffle};
const Operation shfl_up = {"__shfl_up_sync", Counter::shuffle, Scope::lanes, shuffle};
const Operation shfl_down = {"__shfl_down_sync", Counter::shuffle, Scope::lanes, shuffle};
const Operation shfl_xor = {"__shfl_xor_sync", Counter::shuffle, Scope::lanes, shuffle};
const Operation ballot = {"__ballot_sync", Counter::vote, Scope::lanes, vote};
const Operation any_lane = {"__any_sync", Counter::vote, Scope::lanes, vote};
const Operation all_lanes = {"__all_sync", Counter::vote, Scope::lanes, vote};
const Operation warp_barrier = {"__syncwarp", Counter::warp_barrier, Scope::lanes, nothing};
const Operation barrier = {"__syncthreads", Counter::barrier, Scope::block, nullptr};
const Operation barrier_and = {"__syncthreads_and", Counter::barrier, Scope::block, nullptr};
const Operation barrier_or = {"__syncthreads_or", Counter::barrier, Scope::block, nullptr};
const Operation barrier_count = {"__syncthreads_count", Counter::barrier, Scope::block, nullptr};

void run(Mma& mma, int line) { collective(current, mma_operation, full_warp, &mma, line); }
void run(LdMatrix& load) { collective(current, ldmatrix_operation, full_warp, &load, load.line); }

}  // namespace emu
