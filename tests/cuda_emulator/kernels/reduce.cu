// Sums of rows: a tree in shared memory, twice in the same buffer, and then another one of the sums by shuffles.
#define uint unsigned int
extern "C" __global__ void __launch_bounds__(256) block_sum_kernel(float* __restrict__ a, float* __restrict__ sums);
extern "C" __global__ void __launch_bounds__(256) block_sum_kernel(float* __restrict__ a, float* __restrict__ sums) {
  __shared__ alignas(64) float red_buf0[256];
  for (int half_of = 0; half_of < 2; ++half_of) {
    red_buf0[((int)threadIdx.x)] = a[((((((int)blockIdx.x) * 2) + half_of) * 256) + ((int)threadIdx.x))];
    __syncthreads();
    if (((int)threadIdx.x) < 128) {
      red_buf0[((int)threadIdx.x)] = (red_buf0[((int)threadIdx.x)] + red_buf0[(((int)threadIdx.x) + 128)]);
    }
    __syncthreads();
    if (((int)threadIdx.x) < 64) {
      red_buf0[((int)threadIdx.x)] = (red_buf0[((int)threadIdx.x)] + red_buf0[(((int)threadIdx.x) + 64)]);
    }
    __syncthreads();
    if (((int)threadIdx.x) < 32) {
      red_buf0[((int)threadIdx.x)] = (red_buf0[((int)threadIdx.x)] + red_buf0[(((int)threadIdx.x) + 32)]);
    }
    __syncthreads();
    if (((int)threadIdx.x) < 16) {
      float w_16_0 = (red_buf0[((int)threadIdx.x)] + red_buf0[(((int)threadIdx.x) + 16)]);
      red_buf0[((int)threadIdx.x)] = w_16_0;
    }
    __syncthreads();
    if (((int)threadIdx.x) == 0) {
      float total = 0x0p+0f/*0.000000e+00*/;
      for (int i = 0; i < 16; ++i) {
        total = (total + red_buf0[i]);
      }
      sums[((((int)blockIdx.x) * 2) + half_of)] = total;
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(64) warp_sum_kernel(float* __restrict__ sums, float* __restrict__ total, int rows) {
  float red_buf0[1];
  uint mask[1];
  float t0[1];
  red_buf0[0] = 0x0p+0f/*0.000000e+00*/;
  for (int i = 0; i < ((rows + 31) >> 5); ++i) {
    if (((i * 32) + ((int)threadIdx.x)) < rows) {
      red_buf0[0] = (red_buf0[0] + sums[((((int)threadIdx.y) * rows) + (i * 32)) + ((int)threadIdx.x)]);
    }
  }
  mask[0] = __activemask();
  t0[0] = __shfl_down_sync(mask[0], red_buf0[0], 16, 32);
  red_buf0[0] = (red_buf0[0] + t0[0]);
  t0[0] = __shfl_down_sync(mask[0], red_buf0[0], 8, 32);
  red_buf0[0] = (red_buf0[0] + t0[0]);
  t0[0] = __shfl_down_sync(mask[0], red_buf0[0], 4, 32);
  red_buf0[0] = (red_buf0[0] + t0[0]);
  t0[0] = __shfl_down_sync(mask[0], red_buf0[0], 2, 32);
  red_buf0[0] = (red_buf0[0] + t0[0]);
  t0[0] = __shfl_down_sync(mask[0], red_buf0[0], 1, 32);
  red_buf0[0] = (red_buf0[0] + t0[0]);
  red_buf0[0] = __shfl_sync(mask[0], red_buf0[0], 0, 32);
  total[((((int)threadIdx.y) * 32) + ((int)threadIdx.x))] = red_buf0[0];
}
