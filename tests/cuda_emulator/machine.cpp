// Runs a block's threads on one CPU: a thread runs until it waits or returns, then another one does.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdlib>

namespace emu {

__thread View* current;
static __thread Machine* machine;
static FiberPool pool;

Machine* this_machine() { return machine; }

Machine::Machine(const Request& request, void* const* arguments)
    : request_(request), arguments_(arguments), shared_(request.shared_bytes) {
  const unsigned* block = request.block;
  const unsigned count = block[0] * block[1] * block[2];
  threads_.resize(count);
  warps_.resize((count + 31) / 32);
  order_.resize(warps_.size());
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    thread.block_dim = {block[0], block[1], block[2]};
    thread.grid_dim = {request.grid[0], request.grid[1], request.grid[2]};
    thread.lane = i % 32;
    thread.machine = this;
    thread.warp = &warps_[i / 32];
    thread.warp->exists |= 1u << thread.lane;
    if (thread.lane == 0) thread.warp->threads = &thread;
  }
  for (size_t i = 0; i < order_.size(); ++i) order_[i] = unsigned(i);
  random_ = request.seed * 2 + 1;
  for (auto& lanes : lane_orders_) {
    for (int i = 0; i < 32; ++i) lanes[i] = uint8_t(i);
    for (int i = 31; i > 0; --i) std::swap(lanes[i], lanes[draw() % unsigned(i + 1)]);
  }
}

Machine::~Machine() { pool.give(fibers_); }

bool Machine::run_block(uint64_t number) {
  const uint64_t x = request_.grid[0], y = request_.grid[1];
  block_ = {unsigned(number % x), unsigned(number / x % y), unsigned(number / x / y)};
  random_ = (request_.seed * 0x9e3779b97f4a7c15ull + number) * 2 + 1;
  shared_.start_block();
  for (Thread& thread : threads_) {
    thread.block = block_;
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.group = 0;
  }
  for (Warp& warp : warps_) {
    warp.waiting = warp.at_barrier = warp.returned = 0;
    make_ready(warp, warp.exists);
  }
  new_warp_order();

  machine = this;
  current_ = &current;
  start(pick(), main_);
  machine = nullptr;
  if (failure_.fault == Fault::none) {
    if (const char* name = shared_.overrun()) {
      record(Fault::out_of_bounds, 0, std::string(": a write behind the shared array ") + name);
    }
  }
  return failure_.fault == Fault::none;
}

void Machine::record(Fault fault, int line, const std::string& message) {
  char where[64];
  snprintf(where, sizeof where, "block (%u, %u, %u)", block_.x, block_.y, block_.z);
  failure_ = {fault, line, where + message};
}

// Threads that can run, in this phase's order of warps and lanes; null once all have returned.
Thread* Machine::pick() {
  do {
    for (; turn_ < order_.size(); ++turn_) {
      Warp& warp = warps_[order_[turn_]];
      if (!warp.ready && warp.waiting) resolve(warp);
      if (!warp.ready) continue;
      while (!(warp.ready >> warp.lanes[warp.turn] & 1)) ++warp.turn;
      const unsigned lane = warp.lanes[warp.turn];
      warp.ready &= ~(1u << lane);
      return &warp.threads[lane];
    }
  } while (release_barrier());
  return nullptr;
}

void Machine::make_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  warp.lanes = lane_orders_[draw() % lane_orders];
  warp.turn = 0;
}

void Machine::new_warp_order() {
  for (size_t i = order_.size(); i-- > 1;) std::swap(order_[i], order_[draw() % (i + 1)]);
  turn_ = 0;
}

// Nothing else runs in this warp: whatever all of its lanes have arrived at happens now.
void Machine::resolve(Warp& warp) {
  uint32_t done = 0, stuck = 0, at_active_lanes = 0;
  for (uint32_t left = warp.waiting; left;) {
    const Arrival& first = warp.threads[__builtin_ctz(left)].arrival;
    uint32_t group = 0;
    void* arguments[32];
    for (uint32_t rest = left; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const Arrival& other = warp.threads[lane].arrival;
      if (!other.matches(first)) continue;
      group |= 1u << lane;
      arguments[lane] = other.argument;
    }
    left &= ~group;
    if (first.operation->scope == Scope::active) {
      at_active_lanes = at_active_lanes ? at_active_lanes : group;
      continue;
    }
    const uint32_t wanted = first.operation->scope == Scope::warp ? full_warp : first.mask & warp.exists;
    if (wanted & ~group) {
      stuck |= group;
      continue;
    }
    first.operation->run(group, arguments);
    ++counts[int(first.operation->counter)];
    done |= group;
  }
  if (!done && at_active_lanes) {  // lanes count as converged until nothing else can bring more of them
    done = at_active_lanes;
    for (uint32_t rest = done; rest; rest &= rest - 1) warp.threads[__builtin_ctz(rest)].active = done;
  }
  if (!done && stuck) fail_divergent(warp);
  warp.waiting &= ~done;
  make_ready(warp, done);
}

// All threads wait at one barrier, or have returned; everything else is an error. False if all have returned.
bool Machine::release_barrier() {
  const Thread* first = nullptr;
  bool returned = false;
  unsigned yes = 0;
  for (const Warp& warp : warps_) {
    returned |= warp.returned != 0;
    for (uint32_t rest = warp.at_barrier; rest; rest &= rest - 1) {
      const Thread& thread = warp.threads[__builtin_ctz(rest)];
      if (!first) first = &thread;
      if (!thread.arrival.matches(first->arrival)) fail_divergent(*first->warp);
      yes += thread.vote;
    }
  }
  if (!first) return false;
  if (returned) fail_divergent(*first->warp);
  votes_ = {yes, unsigned(threads_.size())};
  ++counts[int(Counter::barrier)];
  for (Warp& warp : warps_) {
    warp.at_barrier = 0;
    make_ready(warp, warp.exists);
  }
  new_warp_order();
  return true;
}

// Goes on with a thread that waited.
inline void Machine::resume(Thread* thread, Context& from) {
  running_ = thread;
  *current_ = thread;
  switch_to(from, thread->context);
}

void Machine::start(Thread* thread, Context& from) {
  running_ = thread;
  *current_ = thread;
  thread->fiber = idle_fiber();
  switch_to(from, thread->fiber->context);
}

// The running thread waits; comes back when it may go on.
inline void Machine::wait(Thread* thread) {
  Thread* next = pick();
  if (next == thread) return;  // it was the last one to arrive
  if (next->fiber) {
    resume(next, thread->context);
  } else {
    start(next, thread->context);
  }
}

Fiber* Machine::idle_fiber() {
  if (idle_.empty()) {
    Fiber* fiber = pool.take();
    fiber->prepare(live, fibers_.size());
    fibers_.push_back(fiber);
    return fiber;
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

// What a fiber does: one thread after the other, as long as the next one has not started elsewhere.
void Machine::live() {
  for (;;) {
    Machine& m = *machine;
    m.request_.kernel(m.arguments_);
    Thread* thread = m.running_;
    thread->warp->returned |= 1u << thread->lane;
    Fiber* fiber = thread->fiber;
    Thread* next = m.pick();
    if (next && !next->fiber) {
      next->fiber = fiber;
      m.running_ = next;
      *m.current_ = next;
      continue;
    }
    m.idle_.push_back(fiber);
    if (next) {
      m.resume(next, fiber->context);
    } else {
      switch_to(fiber->context, m.main_);
    }
  }
}

static std::string ranges(uint32_t lanes) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int last = lane;
    while (last < 31 && lanes >> (last + 1) & 1) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(lane);
    if (last > lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return text;
}

static std::string place(const Arrival& arrival) {
  char mask[32] = "";
  if (arrival.operation->scope == Scope::lanes) snprintf(mask, sizeof mask, " for lanes 0x%08x", arrival.mask);
  return std::string(arrival.operation->name) + " (line " + std::to_string(arrival.line) + ")" + mask;
}

// "lanes 0-15 wait at ..., lanes 16-31 have returned".
static std::string whereabouts(const Warp& warp) {
  std::string text;
  for (uint32_t left = warp.waiting | warp.at_barrier; left;) {
    const Arrival& first = warp.threads[__builtin_ctz(left)].arrival;
    uint32_t group = 0;
    for (uint32_t rest = left; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (warp.threads[lane].arrival.matches(first)) group |= 1u << lane;
    }
    left &= ~group;
    text += (text.empty() ? "lanes " : ", lanes ") + ranges(group) + " wait at " + place(first);
  }
  if (warp.returned) text += (text.empty() ? "lanes " : ", lanes ") + ranges(warp.returned) + " have returned";
  return text;
}

void Machine::fail_divergent(const Warp& warp) {
  auto number = [this](const Warp& of) { return std::to_string(&of - warps_.data()); };
  const std::string own = whereabouts(warp);
  std::string text = ": not all threads arrive: in warp " + number(warp) + " " + own;
  for (const Warp& other : warps_) {
    const std::string others = whereabouts(other);
    if (others == own) continue;
    text += "; in warp " + number(other) + " " + others;
    break;
  }
  const uint32_t waits = warp.waiting | warp.at_barrier;
  stop(Fault::divergence, waits ? warp.threads[__builtin_ctz(waits)].arrival.line : 0, text);
}

void Machine::stop(Fault fault, int line, const std::string& message) {
  record(fault, line, message);
  Context abandoned;
  switch_to(abandoned, main_);
  abort();  // nothing resumes an abandoned stack
}

void fail(Fault fault, int line, const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  char where[96];
  const Index& index = current->thread;
  snprintf(where, sizeof where, ", thread (%u, %u, %u): ", index.x, index.y, index.z);
  machine->stop(fault, line, std::string(where) + text);
  abort();
}

static const Operation active_mask = {"__activemask", Counter::vote, Scope::active, nullptr};

void collective(View* self, const Operation& operation, uint32_t mask, void* argument, int line) {
  Thread* thread = static_cast<Thread*>(self);
  if (!(mask >> thread->lane & 1)) {
    fail(Fault::divergence, line, "%s by lane %u, which is not in its mask 0x%08x", operation.name, thread->lane, mask);
  }
  thread->arrival = {&operation, argument, mask, line};
  thread->warp->waiting |= 1u << thread->lane;
  thread->machine->wait(thread);
}

uint32_t active_lanes(View* self, int line) {
  Thread* thread = static_cast<Thread*>(self);
  thread->arrival = {&active_mask, nullptr, 0, line};
  thread->warp->waiting |= 1u << thread->lane;
  thread->machine->wait(thread);
  return thread->active;
}

Votes block_barrier(View* self, const Operation& operation, bool vote, int line) {
  Thread* thread = static_cast<Thread*>(self);
  thread->arrival = {&operation, nullptr, 0, line};
  thread->vote = vote;
  thread->warp->at_barrier |= 1u << thread->lane;
  thread->machine->wait(thread);
  return thread->machine->votes();
}

}  // namespace emu
