// Runs a kernel's parallel loops on the OpenMP threads that PyTorch already has.
//
// TVM's kernels call __TVMBackendParallelLaunch through a pointer that is filled in when they are loaded. With
// a thread pool of its own beside OpenMP's, each pool's waiting threads keep the other's from the cores. The
// OpenMP functions are handed in by address, so that they are PyTorch's whatever its library is called.
#include <cstdint>

namespace {

struct GroupEnv {  // TVMParallelGroupEnv
  void* sync_handle;
  int32_t num_task;
};
using Lambda = int (*)(int task_id, GroupEnv* env, void* data);

struct Region {
  Lambda lambda;
  void* data;
  int tasks;
  int next;
  int status;
};

// Tasks per thread. Threads take them as they come, so that one that is held up (by another process, or
// because its core is a slow one) holds up the others by a fraction of its share only.
constexpr int kTasksPerThread = 4;

void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
int (*in_parallel)() = nullptr;                                           // omp_in_parallel

thread_local int wanted_threads = 1;

void run_task(void* argument) {
  auto* region = static_cast<Region*>(argument);
  GroupEnv env{nullptr, region->tasks};
  for (;;) {
    int task = __atomic_fetch_add(&region->next, 1, __ATOMIC_RELAXED);
    if (task >= region->tasks) return;
    int status = region->lambda(task, &env, region->data);
    if (status != 0) __atomic_store_n(&region->status, status, __ATOMIC_RELAXED);
  }
}

}  // namespace

extern "C" {

void tvm_na_use_openmp(void* gomp_parallel, void* omp_in_parallel) {
  parallel = reinterpret_cast<decltype(parallel)>(gomp_parallel);
  in_parallel = reinterpret_cast<decltype(in_parallel)>(omp_in_parallel);
}

// The threads of the calling thread's next kernels.
void tvm_na_set_threads(int threads) { wanted_threads = threads; }

// TVMBackendParallelLaunch
int tvm_na_parallel_launch(Lambda lambda, void* data, int num_task) {
  int threads = num_task > 0 && num_task < wanted_threads ? num_task : wanted_threads;
  if (threads <= 1 || in_parallel()) {
    GroupEnv env{nullptr, 1};
    return lambda(0, &env, data);
  }
  Region region{lambda, data, threads * kTasksPerThread, 0, 0};
  parallel(run_task, &region, static_cast<unsigned>(threads), 0);
  return region.status;
}

}
