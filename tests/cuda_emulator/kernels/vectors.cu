// Vector loads and stores, to and from global, static shared and dynamic shared memory.
#include <cuda_fp16.h>
#define uchar unsigned char

extern "C" __global__ void __launch_bounds__(64) scale_kernel(float* __restrict__ a, float* __restrict__ b, int offset, float factor) {
  float4 v_ = *(float4*)(a + (((((int)blockIdx.x) * 256) + (((int)threadIdx.x) * 4)) + offset));
  float4 __1;
  __1.x = (v_.x*factor);
  __1.y = (v_.y*factor);
  __1.z = (v_.z*factor);
  __1.w = (v_.w*factor);
  *(float4*)(b + ((((int)blockIdx.x) * 256) + (((int)threadIdx.x) * 4))) = __1;
}

extern "C" __global__ void __launch_bounds__(32) reverse_kernel(half* __restrict__ a, half* __restrict__ b) {
  extern __shared__ __align__(64) uchar buf_dyn_shmem[];
  *(uint4*)(((half*)buf_dyn_shmem) + (((int)threadIdx.x) * 8)) = *(uint4*)(a + ((((int)blockIdx.x) * 256) + (((int)threadIdx.x) * 8)));
  __syncthreads();
  uint4 v_ = *(uint4*)(((half*)buf_dyn_shmem) + (248 - (((int)threadIdx.x) * 8)));
  uint4 w_;
  ((half2*)(&(w_.x)))->x = ((half2*)(&(v_.w)))->y;
  ((half2*)(&(w_.x)))->y = ((half2*)(&(v_.w)))->x;
  ((half2*)(&(w_.y)))->x = ((half2*)(&(v_.z)))->y;
  ((half2*)(&(w_.y)))->y = ((half2*)(&(v_.z)))->x;
  ((half2*)(&(w_.z)))->x = ((half2*)(&(v_.y)))->y;
  ((half2*)(&(w_.z)))->y = ((half2*)(&(v_.y)))->x;
  ((half2*)(&(w_.w)))->x = ((half2*)(&(v_.x)))->y;
  ((half2*)(&(w_.w)))->y = ((half2*)(&(v_.x)))->x;
  *(uint4*)(b + ((((int)blockIdx.x) * 256) + (((int)threadIdx.x) * 8))) = w_;
}

extern "C" __global__ void __launch_bounds__(128) transpose_kernel(int* __restrict__ a, int* __restrict__ b) {
  __shared__ int tile[32][33];
  for (int i = 0; i < 8; ++i) {
    tile[((i * 4) + ((int)threadIdx.y))][((int)threadIdx.x)] = __ldg(a + ((((i * 4) + ((int)threadIdx.y)) * 32) + ((int)threadIdx.x)));
  }
  __syncthreads();
  for (int i = 0; i < 8; ++i) {
    b[((((i * 4) + ((int)threadIdx.y)) * 32) + ((int)threadIdx.x))] = tile[((int)threadIdx.x)][((i * 4) + ((int)threadIdx.y))];
  }
}

extern "C" __global__ void __launch_bounds__(96) widths_kernel(int64_t* __restrict__ a, double* __restrict__ b, uchar* __restrict__ c) {
  longlong2 v_ = *(longlong2*)(a + (((int)threadIdx.x) * 2));
  *(double2*)(b + (((int)threadIdx.x) * 2)) = make_double2(((double)v_.y), ((double)v_.x));
  *(uchar4*)(c + (((int)threadIdx.x) * 4)) = make_uchar4(((uchar)v_.x), ((uchar)v_.y), ((uchar)(((int)threadIdx.x) & 255)), ((uchar)255));
}

extern "C" __global__ void __launch_bounds__(256) histogram_kernel(int* __restrict__ a, int* __restrict__ counts, float* __restrict__ total, int n) {
  int i = ((((int)blockIdx.x) * 256) + ((int)threadIdx.x));
  if (i < n) {
    atomicAdd(&(counts[a[i]]), 1);
    atomicAdd(total, ((float)a[i]));
    atomicMax(counts + 16, a[i]);
  }
}
