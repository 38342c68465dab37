// Handlers for accesses to guarded pages, while they live.
#pragma once
#include <csignal>
#include <vector>

#include "memory.h"

namespace emu {

// Of the process. Accesses that are not a kernel's go to whoever handled them before.
class FaultHandler {
 public:
  explicit FaultHandler(const std::vector<Argument*>& of_launch);
  ~FaultHandler();
};

// Of a CPU thread: where its handlers run, for the stack at fault may be full.
class HandlerStack {
 public:
  HandlerStack();
  ~HandlerStack();

 private:
  Guarded memory_{64 << 10, guard_bytes};
  stack_t before_{};
};

}  // namespace emu
