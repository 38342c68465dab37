// Accesses that a GPU would refuse: what the compiler's checks report, and pages that must not be touched.
#include "faults.h"

#include <csignal>
#include <cstring>

#include "scheduler.h"

namespace emu {

static const std::vector<Argument*>* arguments;
static struct sigaction before[2];
static const int signals[2] = {SIGSEGV, SIGBUS};

static void refuse(const char* address) {
  for (const Argument* argument : *arguments) {
    if (!argument->guards(address)) continue;
    const char* end = argument->data() + argument->bytes();
    const bool behind = address >= end;
    fail(Fault::out_of_bounds, 0, "an access %td bytes %s array argument %td, which has %zu",
         behind ? address - end : argument->data() - address, behind ? "behind the end of" : "before the start of",
         argument->position(), argument->bytes());
  }
  if (this_machine()->shared().guards(address)) fail(Fault::out_of_bounds, 0, "an access far outside of shared memory");
  if (this_machine()->running()->fiber->stack.guards(address)) {
    fail(Fault::unsupported, 0, "local arrays are larger than the emulator's stack");
  }
  fail(Fault::out_of_bounds, 0, "an access at %p, which is in no argument", static_cast<const void*>(address));
}

static void handle(int number, siginfo_t* info, void*) {
  if (this_machine()) refuse(static_cast<const char*>(info->si_addr));
  sigaction(number, &before[number == SIGBUS], nullptr);  // not ours: the access happens again, and is theirs
}

FaultHandler::FaultHandler(const std::vector<Argument*>& of_launch) {
  arguments = &of_launch;
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left by a switch of stacks
  for (int i = 0; i < 2; ++i) sigaction(signals[i], &action, &before[i]);
}

FaultHandler::~FaultHandler() {
  for (int i = 0; i < 2; ++i) sigaction(signals[i], &before[i], nullptr);
}

HandlerStack::HandlerStack() {
  stack_t stack{};
  stack.ss_sp = memory_.begin();
  stack.ss_size = size_t(memory_.end() - memory_.begin());
  sigaltstack(&stack, &before_);
}

HandlerStack::~HandlerStack() { sigaltstack(&before_, nullptr); }

}  // namespace emu

// What code compiled with -fsanitize=alignment,bounds,integer-divide-by-zero calls. The layouts are those of the
// compilers' interface to their sanitizers.
namespace {

struct Place {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  Place place;
  const Type* type;
  unsigned char log_alignment, access;
};
struct OutOfBounds {
  Place place;
  const Type *array, *index;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const Mismatch* data, uintptr_t address) {
  const int alignment = 1 << data->log_alignment;
  const emu::Fiber* fiber = emu::this_machine()->running()->fiber;
  // Registers have no addresses; an array that stands for some is aligned to 16 bytes, if it has as many.
  if (alignment < 16 && fiber->stack.guards(reinterpret_cast<void*>(address))) return;
  emu::fail(emu::Fault::misaligned, int(data->place.line), "an access to %s at an address that is not a multiple of %d",
            data->type->name, alignment);
}

extern "C" void __ubsan_handle_out_of_bounds(const OutOfBounds* data, uintptr_t index) {
  emu::fail(emu::Fault::out_of_bounds, int(data->place.line), "index %ld of an array of type %s", long(int(index)),
            data->array->name);
}

extern "C" void __ubsan_handle_divrem_overflow(const Place* place, uintptr_t, uintptr_t) {
  emu::fail(emu::Fault::arithmetic, int(place->line), "an integer division by zero");
}
