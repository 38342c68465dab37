// Every kind of shuffle and vote, for each width.
extern "C" __global__ void __launch_bounds__(64) shuffle_kernel(int* __restrict__ a, int* __restrict__ b, int by, int width) {
  int value = a[((int)threadIdx.x)];
  b[((int)threadIdx.x)] = __shfl_sync(0xffffffff, value, by, width);
  b[(((int)threadIdx.x) + 64)] = __shfl_up_sync(0xffffffff, value, by, width);
  b[(((int)threadIdx.x) + 128)] = __shfl_down_sync(0xffffffff, value, by, width);
  b[(((int)threadIdx.x) + 192)] = __shfl_xor_sync(0xffffffff, value, by, width);
}

extern "C" __global__ void __launch_bounds__(64) types_kernel(float* __restrict__ a, double* __restrict__ b, int64_t* __restrict__ c) {
  a[((int)threadIdx.x)] = __shfl_xor_sync(0xffffffff, a[((int)threadIdx.x)], 1, 32);
  b[((int)threadIdx.x)] = __shfl_xor_sync(0xffffffff, b[((int)threadIdx.x)], 2, 32);
  c[((int)threadIdx.x)] = __shfl_xor_sync(0xffffffff, (long long)c[((int)threadIdx.x)], 4, 32);
}

extern "C" __global__ void __launch_bounds__(64) vote_kernel(int* __restrict__ a, unsigned* __restrict__ b) {
  int yes = (0 < a[((int)threadIdx.x)]);
  b[((int)threadIdx.x)] = __ballot_sync(0xffffffff, yes);
  b[(((int)threadIdx.x) + 64)] = __any_sync(0xffffffff, yes);
  b[(((int)threadIdx.x) + 128)] = __all_sync(0xffffffff, yes);
  b[(((int)threadIdx.x) + 192)] = __syncthreads_count(yes);
  b[(((int)threadIdx.x) + 256)] = __reduce_add_sync(0xffffffff, (unsigned)yes);
  b[(((int)threadIdx.x) + 320)] = (((__syncthreads_or(yes) != 0) * 2) + (__syncthreads_and(yes) != 0));
  b[(((int)threadIdx.x) + 384)] = 0;
  if ((((int)threadIdx.x) % 3) == 0) {
    b[(((int)threadIdx.x) + 384)] = __activemask();
  }
}

// Halves of a warp that go different ways, and meet again through the warp's memory.
extern "C" __global__ void __launch_bounds__(32) halves_kernel(float* __restrict__ a, float* __restrict__ b) {
  __shared__ float sums[2];
  float value = a[((int)threadIdx.x)];
  if (((int)threadIdx.x) < 16) {
    for (int i = 8; i > 0; i >>= 1) {
      value = (value + __shfl_xor_sync(0x0000ffff, value, i, 32));
    }
    sums[0] = value;
  } else {
    for (int i = 8; i > 0; i >>= 1) {
      value = (value * __shfl_xor_sync(0xffff0000, value, i, 32));
    }
    sums[1] = value;
  }
  __syncwarp();
  b[((int)threadIdx.x)] = (sums[0] - sums[1]);
}
