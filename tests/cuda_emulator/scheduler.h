// The machine: one worker's threads, warps, shared memory and stacks.
#pragma once
#include <string>
#include <vector>

#include "machine.h"
#include "memory.h"

namespace emu {

// A launch, as emulate.py fills it in (build.py has the same structures).
struct Request {
  void (*kernel)(void* const* arguments);
  uint32_t grid[3], block[3];
  uint32_t shared_bytes, late_copies, workers, arguments;
  uint64_t seed;
  void* const* values;   // the data of arrays; a scalar's address, as int64_t or double
  const int64_t* bytes;  // of arrays; -1 for a scalar
  const uint8_t* writable;
};

struct Outcome {
  int32_t fault, line;
  int64_t counts[int(Counter::number)];
  char message[1536];
};

struct Arrival {
  const Operation* operation;
  void* argument;
  uint32_t mask;
  int line;

  bool matches(const Arrival& other) const {
    return operation == other.operation && mask == other.mask &&
           (line == other.line || operation->scope == Scope::lanes);
  }
};

struct Copy {
  uint32_t to;
  const char* from;
  int bytes, source_bytes, line;
  unsigned group;
};

struct Warp;
class Machine;

struct alignas(64) Thread : View {
  bool vote;
  Warp* warp;
  Machine* machine;
  Fiber* fiber;     // null before its first instruction
  Context context;  // while it waits
  Arrival arrival;
  uint32_t active;
  unsigned group;  // of the copies that come next
  std::vector<Copy> copies;
};

// Sets of lanes. A lane is in one of them, unless it runs or has not been made ready.
struct Warp {
  uint32_t exists = 0, ready = 0, waiting = 0, at_barrier = 0, returned = 0;
  const uint8_t* lanes = nullptr;  // the order in which ready ones run
  int turn = 0;
  Thread* threads = nullptr;
};

struct Failure {
  Fault fault = Fault::none;
  int line = 0;
  std::string message;
};

class Machine {
 public:
  Machine(const Request& request, void* const* arguments);
  ~Machine();
  bool run_block(uint64_t number);  // false after an error

  const Failure& failure() const { return failure_; }
  const Request& request() const { return request_; }
  SharedMemory& shared() { return shared_; }
  Thread* running() const { return running_; }
  Votes votes() const { return votes_; }
  void wait(Thread* thread);
  [[noreturn]] void stop(Fault fault, int line, const std::string& message);

  int64_t counts[int(Counter::number)] = {};

 private:
  static void live();
  Thread* pick();
  void make_ready(Warp& warp, uint32_t lanes);
  void new_warp_order();
  void resolve(Warp& warp);
  bool release_barrier();
  void resume(Thread* thread, Context& from);
  void start(Thread* thread, Context& from);
  Fiber* idle_fiber();
  void record(Fault fault, int line, const std::string& message);
  [[noreturn]] void fail_divergent(const Warp& warp);

  uint64_t draw() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ * 0x2545f4914f6cdd1dull >> 33;
  }

  static constexpr unsigned lane_orders = 64;
  const Request& request_;
  void* const* arguments_;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;  // of warps
  size_t turn_ = 0;
  uint8_t lane_orders_[lane_orders][32];
  uint64_t random_;
  Index block_{};
  Votes votes_{};
  Thread* running_ = nullptr;
  View** current_;  // this CPU thread's own
  Context main_;
  std::vector<Fiber*> fibers_, idle_;
  Failure failure_;
};

Machine* this_machine();  // the one that runs a block on this CPU thread, or null

}  // namespace emu
