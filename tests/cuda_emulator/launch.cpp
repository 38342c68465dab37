// emulation_launch: blocks over CPU threads, on copies of the arguments.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "faults.h"
#include "scheduler.h"

namespace emu {
namespace {

// Arrays as kernels see them. The same array given twice is one copy.
class Arguments {
 public:
  explicit Arguments(const Request& request) : request_(request) {
    for (uint32_t i = 0; i < request.arguments; ++i) {
      const int64_t bytes = request.bytes[i];
      pointers.push_back(bytes < 0 ? request.values[i] : copy(i, size_t(bytes)));
    }
    for (const auto& argument : copies_) arrays.push_back(argument.get());
  }

  std::string overrun() const {
    for (const auto& argument : copies_) {
      if (argument->overrun()) return "a write beside array argument " + std::to_string(argument->position());
    }
    return "";
  }

  std::string copy_back() {
    for (const auto& argument : copies_) {
      if (!argument->changed()) continue;
      if (!request_.writable[argument->position()]) {
        return "a write to the read-only array argument " + std::to_string(argument->position());
      }
      argument->copy_back();
    }
    return "";
  }

  std::vector<void*> pointers;
  std::vector<Argument*> arrays;

 private:
  void* copy(uint32_t position, size_t bytes) {
    for (const auto& argument : copies_) {
      if (argument->original() == request_.values[position] && argument->bytes() == bytes) return argument->data();
    }
    copies_.push_back(std::make_unique<Argument>(request_.values[position], bytes, ptrdiff_t(position)));
    return copies_.back()->data();
  }

  const Request& request_;
  std::vector<std::unique_ptr<Argument>> copies_;
};

// Blocks in turn, for each CPU thread that asks; those of odd seeds in reverse.
class Grid {
 public:
  explicit Grid(const Request& request) : seed_(request.seed) {
    for (unsigned extent : request.grid) blocks *= extent;
  }
  bool next(uint64_t& number) {
    const uint64_t turn = turn_++;
    if (turn >= blocks) return false;
    number = seed_ % 2 ? blocks - 1 - turn : turn;
    return true;
  }
  void stop() { turn_ = blocks; }

  uint64_t blocks = 1;

 private:
  uint64_t seed_;
  std::atomic<uint64_t> turn_{0};
};

class Launch {
 public:
  Launch(const Request& request, Outcome& outcome) : request_(request), outcome_(outcome), grid_(request) {}

  void run() {
    Arguments arguments(request_);
    {
      FaultHandler handler(arguments.arrays);
      void* const* pointers = arguments.pointers.data();
      std::vector<std::thread> others;
      const uint64_t workers = std::min<uint64_t>(request_.workers, grid_.blocks);
      for (uint64_t i = 1; i < workers; ++i) others.emplace_back([this, pointers] { work(pointers); });
      work(pointers);
      for (std::thread& other : others) other.join();
    }
    if (!outcome_.fault) report(arguments.overrun());
    if (!outcome_.fault) report(arguments.copy_back());
  }

 private:
  void work(void* const* pointers) {
    HandlerStack stack;
    Machine machine(request_, pointers);
    uint64_t number;
    bool ok = true;
    while (ok && grid_.next(number)) ok = machine.run_block(number);
    if (!ok) grid_.stop();

    std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < int(Counter::number); ++i) outcome_.counts[i] += machine.counts[i];
    if (ok || (outcome_.fault && number > failed_)) return;
    failed_ = number;
    write(machine.failure());
  }

  void report(const std::string& text) {
    if (!text.empty()) write({Fault::out_of_bounds, 0, text});
  }

  void write(const Failure& failure) {
    outcome_.fault = int32_t(failure.fault);
    outcome_.line = failure.line;
    snprintf(outcome_.message, sizeof outcome_.message, "%s", failure.message.c_str());
  }

  const Request& request_;
  Outcome& outcome_;
  Grid grid_;
  std::mutex mutex_;
  uint64_t failed_ = 0;
};

std::mutex one_launch;  // signal handlers are the process's

}  // namespace
}  // namespace emu

extern "C" void emulation_launch(const emu::Request* request, emu::Outcome* outcome) {
  std::lock_guard<std::mutex> lock(emu::one_launch);
  *outcome = {};
  try {
    emu::Launch(*request, *outcome).run();
  } catch (const std::exception& error) {
    outcome->fault = int32_t(emu::Fault::unsupported);
    snprintf(outcome->message, sizeof outcome->message, "no memory for the launch: %s", error.what());
  }
}
