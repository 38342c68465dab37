// What the kernels and the machine that runs them share. The machine is compiled once, each source against this.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr unsigned full_warp = 0xffffffffu;

struct Index {
  unsigned x, y, z;
};

// What a thread sees of itself.
struct View {
  Index thread, block, block_dim, grid_dim;
  unsigned lane;
};

extern __thread View* current;  // the thread that runs on this worker

// The order is that of FAULTS in build.py.
enum class Fault : int { none, misaligned, out_of_bounds, divergence, unsupported, arithmetic };

// Ends the launch with an error about the running thread. `line` is that of the source, 0 if unknown.
[[noreturn]] void fail(Fault fault, int line, const char* format, ...) __attribute__((format(printf, 3, 4)));

enum class Counter : int { mma, ldmatrix, shuffle, vote, warp_barrier, barrier, copy, number };

// Who has to arrive: the lanes of a mask; all 32, at one line of the source; the whole block, at one line; or no one.
enum class Scope : int { lanes, warp, block, active };

// What threads do together, once all of them have arrived; arguments[lane] is what that lane brought.
struct Operation {
  const char* name;
  Counter counter;
  Scope scope;
  void (*run)(uint32_t lanes, void* const* arguments);  // null for those of a block
};

void collective(View* self, const Operation& operation, uint32_t mask, void* argument, int line);
uint32_t active_lanes(View* self, int line);

struct Votes {
  unsigned yes, threads;
};
Votes block_barrier(View* self, const Operation& operation, bool vote, int line);

// Shared memory. The same `number` gives a block's threads the same array, which is NaN when the block starts.
void* shared_array(int number, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared(const char* name, size_t alignment);
uint32_t shared_address(const void* pointer, int line);
char* shared_pointer(uint32_t address, size_t bytes, size_t alignment, const char* what, int line);

// cp.async: copies land when a wait demands it (or at once, if the launch says so).
void copy_async(uint32_t to, const void* from, int bytes, int source_bytes, int line);
void commit_copies();
void wait_copies(unsigned pending);

// Collectives whose bodies are in collectives.cpp.
struct Shuffle {
  uint64_t value, result;
  unsigned source;
};
extern const Operation shfl_idx, shfl_up, shfl_down, shfl_xor;

struct Vote {
  bool yes;
  uint32_t ballot, lanes;
};
extern const Operation ballot, any_lane, all_lanes, warp_barrier;
extern const Operation barrier, barrier_and, barrier_or, barrier_count;

enum class Element : int { f16, bf16, tf32 };
struct Mma {  // D = A B + C, m16n8k`depth`: the registers of one lane
  Element element;
  int depth;
  uint32_t a[4], b[2];
  float c[4], d[4];
};
void run(Mma& mma, int line);

struct LdMatrix {
  int count;
  bool transposed;
  uint32_t address;
  int line;
  uint32_t result[4];
};
void run(LdMatrix& load);

}  // namespace emu
