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
  int status;
};

void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
int (*thread_number)() = nullptr;                                         // omp_get_thread_num
int (*thread_count)() = nullptr;                                          // omp_get_num_threads
int (*in_parallel)() = nullptr;                                           // omp_in_parallel

thread_local int wanted_threads = 1;

void run_task(void* argument) {
  auto* region = static_cast<Region*>(argument);
  GroupEnv env{nullptr, thread_count()};
  int status = region->lambda(thread_number(), &env, region->data);
  if (status != 0) __atomic_store_n(&region->status, status, __ATOMIC_RELAXED);
}

}  // namespace

extern "C" {

void tvm_na_use_openmp(void* gomp_parallel, void* get_thread_num, void* get_num_threads, void* get_in_parallel) {
  parallel = reinterpret_cast<decltype(parallel)>(gomp_parallel);
  thread_number = reinterpret_cast<decltype(thread_number)>(get_thread_num);
  thread_count = reinterpret_cast<decltype(thread_count)>(get_num_threads);
  in_parallel = reinterpret_cast<decltype(in_parallel)>(get_in_parallel);
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
  Region region{lambda, data, 0};
  parallel(run_task, &region, static_cast<unsigned>(threads), 0);
  return region.status;
}

}
