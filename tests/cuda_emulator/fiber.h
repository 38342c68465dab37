// Stacks, and the switch between them: a few instructions on x86-64 and AArch64, ucontext elsewhere.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

// Memory with a page on either side that must not be touched.
class Guarded {
 public:
  explicit Guarded(size_t bytes, size_t guard) : guard_(guard), size_(round_up(bytes) + 2 * guard) {
    void* memory = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    if (bytes && mprotect(begin(), end() - begin(), PROT_READ | PROT_WRITE)) throw std::bad_alloc();
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  char* begin() const { return base_ + guard_; }
  char* end() const { return base_ + size_ - guard_; }
  bool guards(const void* address) const {  // in the memory or one of its guards
    return address >= base_ && address < base_ + size_;
  }

 private:
  static size_t round_up(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }
  size_t guard_, size_;
  char* base_;
};

// With its guards an odd number of pages: at a power of two apart, stacks would share a few entries of the TLB.
constexpr size_t stack_bytes = 124 << 10;
constexpr size_t guard_bytes = 64 << 10;  // a page at least, whatever its size

// Where a stack's execution stands while another one runs.
struct Context {
#ifdef EMU_UCONTEXT
  ucontext_t registers;
#else
  void* pointer;
#endif
};

#if defined(EMU_UCONTEXT)
inline void switch_to(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
#else
extern "C" void emulation_switch(void** from, void* to);
inline void switch_to(Context& from, Context& to) { emulation_switch(&from.pointer, to.pointer); }
#endif

struct Fiber {
  Guarded stack{stack_bytes, guard_bytes};
  Context context;

  // Lets the next switch to this fiber call `entry`, which never returns. Stack tops lie at different distances
  // from a page's end: at equal ones all of them would fall into the same few lines of the cache.
  void prepare(void (*entry)(), size_t color) {
    char* top = stack.end() - color % 32 * 128;
#if defined(EMU_UCONTEXT)
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = stack.begin();
    context.registers.uc_stack.ss_size = size_t(top - stack.begin());
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
#elif defined(__x86_64__)
    void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and where it would return to
    for (int i = 0; i < 8; ++i) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(entry);
    context.pointer = frame;
#else
    void** frame = reinterpret_cast<void**>(top) - 20;  // x19 to x30, d8 to d15
    for (int i = 0; i < 20; ++i) frame[i] = nullptr;
    frame[11] = reinterpret_cast<void*>(entry);
    context.pointer = frame;
#endif
  }
};

// Stacks outlive launches: touching fresh memory is what costs.
class FiberPool {
 public:
  Fiber* take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return new Fiber;
    Fiber* fiber = free_.back();
    free_.pop_back();
    return fiber;
  }
  void give(const std::vector<Fiber*>& fibers) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.insert(free_.end(), fibers.begin(), fibers.end());
  }

 private:
  std::mutex mutex_;
  std::vector<Fiber*> free_;
};

}  // namespace emu
