/* Runs one kernel of TVM's without TVM's runtime, on one thread: `one_kernel IN OUT` reads the tensors of a call from a
   file and writes all of them back. A tensor is its dtype's code and bits, its number of axes, its sizes, its content.
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;
typedef struct { int32_t type, pad; void* value; } Any;
typedef struct { void* sync; int32_t tasks; } Group;

extern int __tvm_ffi_main(void*, Any*, int32_t, Any*);
extern void *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace, *__TVMBackendParallelLaunch;

static void* allocate(int kind, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}

static int release(int kind, int id, void* memory) {
  free(memory);
  return 0;
}

static int launch(int (*task)(int, Group*, void*), void* data, int tasks) {
  Group one = {0, 1};
  return task(0, &one, data);
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* text) { fprintf(stderr, "%s: %s\n", kind, text); }

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int n) {
  while (n--) TVMFFIErrorSetRaisedFromCStr(kind, *parts++);
}

int main(int argc, char** argv) {
  __TVMBackendAllocWorkspace = allocate;
  __TVMBackendFreeWorkspace = release;
  __TVMBackendParallelLaunch = launch;
  DLTensor tensors[16];
  Any arguments[16], result = {0};
  size_t sizes[16];
  int32_t n = 0, head[3];
  memset(arguments, 0, sizeof arguments);
  FILE* file = fopen(argv[1], "rb");
  for (; fread(head, sizeof head, 1, file) == 1; ++n) {
    int64_t* shape = malloc(head[2] * sizeof *shape);
    if (fread(shape, sizeof *shape, head[2], file) != head[2]) return 2;
    sizes[n] = head[1] / 8;
    for (int axis = 0; axis < head[2]; ++axis) sizes[n] *= shape[axis];
    tensors[n] = (DLTensor){allocate(0, 0, sizes[n], 0, 0), 1, 0, head[2], head[0], head[1], 1, shape, 0, 0};
    if (fread(tensors[n].data, 1, sizes[n], file) != sizes[n]) return 2;
    arguments[n] = (Any){7, 0, &tensors[n]};
  }
  int failed = __tvm_ffi_main(0, arguments, n, &result);
  file = fopen(argv[2], "wb");
  for (int k = 0; k < n; ++k) fwrite(tensors[k].data, 1, sizes[k], file);
  return fclose(file) || failed;
}
