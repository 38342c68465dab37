// Shared memory and asynchronous copies, as kernels ask for them.
#include <cstdlib>

#include "scheduler.h"

namespace emu {

static void* placed(char* data, const char* name) {
  if (data) return data;
  fail(Fault::unsupported, 0, "no room for the shared array %s: a block has %zu bytes, %zu of them for static arrays",
       name, SharedMemory::most, SharedMemory::most_static);
}

void* shared_array(int number, const char* name, size_t bytes, size_t alignment) {
  return placed(this_machine()->shared().array(number, name, bytes, alignment), name);
}

void* dynamic_shared(const char* name, size_t alignment) {
  return placed(this_machine()->shared().array(-1, name, 0, alignment), name);
}

uint32_t shared_address(const void* pointer, int line) {
  const SharedMemory& shared = this_machine()->shared();
  if (!shared.contains(pointer)) fail(Fault::out_of_bounds, line, "the address of something that is not shared memory");
  return shared.address(pointer);
}

char* shared_pointer(uint32_t address, size_t bytes, size_t alignment, const char* what, int line) {
  char* pointer = this_machine()->shared().at(address, bytes);
  if (!pointer) fail(Fault::out_of_bounds, line, "%s of %zu bytes outside of the shared arrays", what, bytes);
  if (address % alignment) {
    fail(Fault::misaligned, line, "%s at address %u of shared memory, which is not a multiple of %zu", what, address,
         alignment);
  }
  return pointer;
}

static void land(const Copy& copy) {
  char* to = shared_pointer(copy.to, size_t(copy.bytes), 1, "cp.async", copy.line);
  memcpy(to, copy.from, size_t(copy.source_bytes));
  memset(to + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
}

void copy_async(uint32_t to, const void* from, int bytes, int source_bytes, int line) {
  Machine& machine = *this_machine();
  Thread& thread = *machine.running();
  shared_pointer(to, size_t(bytes), size_t(bytes), "cp.async", line);
  if (reinterpret_cast<uintptr_t>(from) % unsigned(bytes)) {
    fail(Fault::misaligned, line, "cp.async from a global address that is not a multiple of %d", bytes);
  }
  if (source_bytes < 0 || source_bytes > bytes) {
    fail(Fault::out_of_bounds, line, "cp.async of %d bytes reads %d of them", bytes, source_bytes);
  }
  ++machine.counts[int(Counter::copy)];
  const Copy copy = {to, static_cast<const char*>(from), bytes, source_bytes, line, thread.group};
  if (machine.request().late_copies) {
    thread.copies.push_back(copy);
  } else {
    land(copy);
  }
}

void commit_copies() { ++this_machine()->running()->group; }

// Copies land, but for those of the last `pending` groups and those not committed.
void wait_copies(unsigned pending) {
  Thread& thread = *this_machine()->running();
  size_t kept = 0;
  for (const Copy& copy : thread.copies) {
    if (copy.group + pending < thread.group) {
      land(copy);
    } else {
      thread.copies[kept++] = copy;
    }
  }
  thread.copies.resize(kept);
}

}  // namespace emu
