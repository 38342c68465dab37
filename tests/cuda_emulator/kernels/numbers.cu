// Conversions and arithmetic of half; tests turn it into one of nv_bfloat16 as well.
#include <cuda_fp16.h>
__device__ half max(half a, half b) {
  return __hgt(half(a), half(b)) ? a : b;
}

extern "C" __global__ void __launch_bounds__(256) narrow_kernel(float* __restrict__ x, half* __restrict__ nearest, half* __restrict__ truncated, int n) {
  int i = ((((int)blockIdx.x) * 256) + ((int)threadIdx.x));
  if (i < n) {
    nearest[i] = __float2half_rn(x[i]);
    truncated[i] = __float2half_rz(x[i]);
  }
}

extern "C" __global__ void __launch_bounds__(256) narrow_double_kernel(double* __restrict__ x, half* __restrict__ nearest, int n) {
  int i = ((((int)blockIdx.x) * 256) + ((int)threadIdx.x));
  if (i < n) {
    nearest[i] = __double2half(x[i]);
  }
}

extern "C" __global__ void __launch_bounds__(256) widen_kernel(half* __restrict__ x, float* __restrict__ y, int n) {
  int i = ((((int)blockIdx.x) * 256) + ((int)threadIdx.x));
  if (i < n) {
    y[i] = ((float)x[i]);
  }
}

extern "C" __global__ void __launch_bounds__(256) arithmetic_kernel(half* __restrict__ a, half* __restrict__ b, half* __restrict__ y, int n) {
  int i = ((((int)blockIdx.x) * 256) + ((int)threadIdx.x));
  if (i < n) {
    y[i] = (a[i] + b[i]);
    y[(n + i)] = (a[i] - b[i]);
    y[((n * 2) + i)] = (a[i] * b[i]);
    y[((n * 3) + i)] = (a[i] / b[i]);
    y[((n * 4) + i)] = max(a[i], b[i]);
    y[((n * 5) + i)] = hexp(a[i]);
    y[((n * 6) + i)] = ((half)(a[i] < b[i]));
    y[((n * 7) + i)] = __hfma(a[i], b[i], a[i]);
    half2 pair = __hadd2(make_half2(a[i], b[i]), __float2half2_rn(0x1p+0f/*1.000000e+00*/));
    y[((n * 8) + i)] = (pair.x * pair.y);
  }
}
