/* A CUDA driver and a CUDA runtime that do nothing but write down, in the file that FAKE_CUDA_LOG names, how they were
 * called. Compiled twice, as libcuda.so.1 and libcudart.so.13, for tests of launches on machines without a GPU. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void note(const char* format, ...) {
  FILE* out = fopen(getenv("FAKE_CUDA_LOG"), "a");
  va_list args;
  va_start(args, format);
  vfprintf(out, format, args);
  va_end(args);
  fputc('\n', out);
  fclose(out);
}

#define UNUSED(name) \
  int name(void) {   \
    note(#name);     \
    return 0;        \
  }

#ifdef DRIVER

typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
} Launch; /* the beginning of CUlaunchConfig */

int cuModuleLoadData(void** module, const void* image) {
  note("cuModuleLoadData %08x", *(const uint32_t*)image);
  *module = (void*)1;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  note("cuModuleGetFunction %s", name);
  *function = (void*)2;
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  note("cuFuncSetAttribute %d %d", attribute, value);
  return 0;
}

int cuLaunchKernelEx(const Launch* config, void* function, void** arguments, void** extra) {
  note("cuLaunchKernelEx grid %u %u %u block %u %u %u shared %u stream %p first %p", config->grid[0], config->grid[1],
       config->grid[2], config->block[0], config->block[1], config->block[2], config->shared, config->stream,
       *(void**)arguments[0]);
  return 0;
}

UNUSED(cuDeviceGetName)
UNUSED(cuGetErrorName)
UNUSED(cuGetErrorString)
UNUSED(cuModuleUnload)
UNUSED(cuTensorMapEncodeTiled)

#else

static int current = 0;

int cudaGetDevice(int* device) {
  *device = current;
  return 0;
}

int cudaSetDevice(int device) {
  note("cudaSetDevice %d", device);
  current = device;
  return 0;
}

int cudaGetDeviceCount(int* count) {
  *count = 2;
  return 0;
}

const char* cudaGetErrorName(int error) { return "error"; }
const char* cudaGetErrorString(int error) { return "error"; }

UNUSED(cudaDeviceGetAttribute)
UNUSED(cudaEventCreate)
UNUSED(cudaEventDestroy)
UNUSED(cudaEventElapsedTime)
UNUSED(cudaEventRecord)
UNUSED(cudaEventSynchronize)
UNUSED(cudaFree)
UNUSED(cudaFreeHost)
UNUSED(cudaGetDeviceProperties)
UNUSED(cudaGetLastError)
UNUSED(cudaGraphDestroy)
UNUSED(cudaGraphExecDestroy)
UNUSED(cudaGraphInstantiate)
UNUSED(cudaGraphLaunch)
UNUSED(cudaMalloc)
UNUSED(cudaMallocHost)
UNUSED(cudaMemGetInfo)
UNUSED(cudaMemcpyAsync)
UNUSED(cudaMemcpyPeerAsync)
UNUSED(cudaPeekAtLastError)
UNUSED(cudaStreamBeginCapture)
UNUSED(cudaStreamCreate)
UNUSED(cudaStreamCreateWithFlags)
UNUSED(cudaStreamDestroy)
UNUSED(cudaStreamEndCapture)
UNUSED(cudaStreamSynchronize)
UNUSED(cudaStreamWaitEvent)

#endif
