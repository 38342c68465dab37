// What TVM's kernels need in WebAssembly: memory, a loop over tasks, errors, a logarithm. No C library, no TVM.
//
// One instance has one memory. Where that is shared, instances in other threads call na_work() and take part in loops.
typedef unsigned char u8;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned long size_t;

#define EXPORT(name) __attribute__((export_name(#name), used)) name

// --- memory: blocks in a row from the end of the program's own data; the first free one that is large enough

typedef struct Block {
  struct Block* next;
  size_t bytes;
  i32 is_free;
  u8 rest[52];  // what is handed out is a multiple of 64
} Block;

extern u8 __heap_base;
static Block* first;
static size_t top;      // the end of the last block
static size_t refused;  // bytes of the last request that could not be met
static i32 lock;

static void acquire(void) {
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
  }
}
static void release(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

static i32 grow_to(u64 end) {
  u64 have = (u64)__builtin_wasm_memory_size(0) << 16;
  if (end <= have) return 1;
  if (end > 0xffff0000ull) return 0;
  return __builtin_wasm_memory_grow(0, (size_t)((end - have + 0xffff) >> 16)) != (size_t)-1;
}

static void* take(u64 bytes) {
  u64 wanted = (bytes + 63) & ~63ull;
  Block** at = &first;
  for (; *at; at = &(*at)->next) {
    Block* b = *at;
    if (!b->is_free) continue;
    while (b->next && b->next->is_free) {
      b->bytes += sizeof(Block) + b->next->bytes;
      b->next = b->next->next;
    }
    if (!b->next) {  // the last one: its end can move
      top = (size_t)b;
      *at = 0;
      break;
    }
    if (b->bytes >= wanted) {
      b->is_free = 0;
      return b + 1;
    }
  }
  if (!top) top = ((size_t)&__heap_base + 63) & ~63ul;
  if (!grow_to((u64)top + sizeof(Block) + wanted)) return 0;
  Block* b = (Block*)top;
  top += sizeof(Block) + (size_t)wanted;
  b->next = 0;
  b->bytes = (size_t)wanted;
  b->is_free = 0;
  *at = b;
  return b + 1;
}

static void* alloc(u64 bytes) {
  acquire();
  void* p = take(bytes);
  if (!p) refused = bytes > 0xffffffffull ? 0xfffffffful : (size_t)bytes;
  release();
  return p;
}

// Memory at a multiple of 64 bytes; 0 where the host gives no more.
void* EXPORT(na_alloc)(size_t bytes) { return alloc(bytes); }
void EXPORT(na_free)(void* p) {
  acquire();
  ((Block*)p - 1)->is_free = 1;
  release();
}
// Bytes of the last request that could not be met since this was last asked; 0 if there was none.
size_t EXPORT(na_refused)(void) {
  size_t bytes = refused;
  refused = 0;
  return bytes;
}

// --- loops: tasks are taken as threads come

typedef struct {
  void* sync;
  i32 num_task;
} Env;
typedef i32 (*Lambda)(i32 task, Env* env, void* data);

enum { TASKS_PER_THREAD = 4, SPINS = 20000 };
static struct {
  Lambda lambda;
  void* data;
  i32 tasks, next, status;
  i32 working;     // threads that are not through with this loop
  i32 generation;  // of the loop
} loop;
static i32 workers;

static void take_tasks(void) {
  Env env = {0, loop.tasks};
  for (;;) {
    i32 task = __atomic_fetch_add(&loop.next, 1, __ATOMIC_RELAXED);
    if (task >= loop.tasks) return;
    i32 status = loop.lambda(task, &env, loop.data);
    if (status) __atomic_store_n(&loop.status, status, __ATOMIC_RELAXED);
  }
}

static i32 launch(Lambda lambda, void* data, i32 wanted) {
  i32 threads = __atomic_load_n(&workers, __ATOMIC_ACQUIRE) + 1;
  if (threads == 1) {
    Env env = {0, 1};
    return lambda(0, &env, data);
  }
  loop.lambda = lambda;
  loop.data = data;
  loop.tasks = threads * TASKS_PER_THREAD;
  loop.next = loop.status = 0;
  loop.working = threads - 1;
  __atomic_add_fetch(&loop.generation, 1, __ATOMIC_SEQ_CST);
  __builtin_wasm_memory_atomic_notify(&loop.generation, (u32)-1);
  take_tasks();
  // A browser's first thread may not wait otherwise.
  while (__atomic_load_n(&loop.working, __ATOMIC_ACQUIRE)) {
  }
  return loop.status;
}

static i32 generation_after(i32 seen) {
  for (i32 spin = 0; spin < SPINS; ++spin) {
    i32 now = __atomic_load_n(&loop.generation, __ATOMIC_ACQUIRE);
    if (now != seen) return now;
  }
  __builtin_wasm_memory_atomic_wait32(&loop.generation, seen, -1);
  return __atomic_load_n(&loop.generation, __ATOMIC_ACQUIRE);
}

// Take part in loops, for good; called by threads beside the first one, each with a stack of its own.
void EXPORT(na_work)(void) {
  i32 seen = __atomic_load_n(&loop.generation, __ATOMIC_ACQUIRE);
  __atomic_add_fetch(&workers, 1, __ATOMIC_ACQ_REL);
  for (;;) {
    i32 now = generation_after(seen);
    if (now == seen) continue;
    seen = now;
    take_tasks();
    __atomic_sub_fetch(&loop.working, 1, __ATOMIC_ACQ_REL);
  }
}
i32 EXPORT(na_workers)(void) { return __atomic_load_n(&workers, __ATOMIC_ACQUIRE); }

// --- errors

static char error_text[512];

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, i32 count) {
  char *out = error_text, *end = error_text + sizeof error_text - 1;
  for (const char* c = kind; *c && out < end;) *out++ = *c++;
  if (out < end) *out++ = ':';
  if (out < end) *out++ = ' ';
  for (i32 i = 0; i < count; ++i)
    for (const char* c = parts[i]; c && *c && out < end;) *out++ = *c++;
  *out = 0;
}
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* text) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &text, 1);
}
// What the last kernel that failed has said, ended by 0.
const char* EXPORT(na_error)(void) { return error_text; }

// --- what kernels call by pointers of their own

static void* workspace(i32 device, i32 id, u64 bytes, i32 code, i32 bits) { return alloc(bytes); }
static i32 free_workspace(i32 device, i32 id, void* p) {
  na_free(p);
  return 0;
}

extern void *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace, *__TVMBackendParallelLaunch;
#pragma weak __TVMBackendAllocWorkspace
#pragma weak __TVMBackendFreeWorkspace
#pragma weak __TVMBackendParallelLaunch

// Once for a memory, before anything else.
void EXPORT(na_start)(void) {
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = (void*)workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = (void*)free_workspace;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void*)launch;
}

// --- what LLVM calls by name

void* memcpy(void* to, const void* from, size_t bytes) { return __builtin_memcpy(to, from, bytes); }
void* memmove(void* to, const void* from, size_t bytes) { return __builtin_memmove(to, from, bytes); }
void* memset(void* to, int value, size_t bytes) { return __builtin_memset(to, value, bytes); }

// log2(x) = exponent + 2 / ln 2 * artanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)): within 1e-16 of its largest term.
double log2(double x) {
  union {
    double value;
    u64 bits;
  } u = {x};
  if (!(x > 0)) return x == 0 ? -__builtin_inf() : __builtin_nan("");
  if (x == __builtin_inf()) return x;
  i32 exponent = 0;
  if (u.bits >> 52 == 0) {  // subnormal
    u.value *= 0x1p54;
    exponent = -54;
  }
  exponent += (i32)(u.bits >> 52) - 1023;
  u.bits = (u.bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  if (u.value > 1.4142135623730951) {
    u.value *= 0.5;
    ++exponent;
  }
  double s = (u.value - 1) / (u.value + 1), square = s * s, sum = 0;
  for (i32 power = 23; power >= 1; power -= 2) sum = sum * square + 1.0 / power;
  return exponent + 2.8853900817779268 * s * sum;
}
float log2f(float x) { return (float)log2(x); }
