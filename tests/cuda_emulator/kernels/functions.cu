// Functions of numbers, fast ones among them, and of integers' bits.
#include <math_constants.h>
extern "C" __global__ void __launch_bounds__(64) floats_kernel(float* __restrict__ x, float* __restrict__ y, float* __restrict__ out) {
  int i = ((int)threadIdx.x);
  out[i] = __expf(x[i]);
  out[(i + 64)] = exp2f(x[i]);
  out[(i + 128)] = __logf(y[i]);
  out[(i + 192)] = log2f(y[i]);
  out[(i + 256)] = __fdividef(x[i], y[i]);
  out[(i + 320)] = rsqrtf(y[i]);
  out[(i + 384)] = fmaf(x[i], y[i], x[i]);
  out[(i + 448)] = max(x[i], y[i]);
  out[(i + 512)] = min(x[i], 0x1p-1f/*5.000000e-01*/);
  out[(i + 576)] = max(x[i], CUDART_NAN_F);
  out[(i + 640)] = min(CUDART_INF_F, max(-CUDART_INF_F, x[i]));
  out[(i + 704)] = __int_as_float((__float_as_int(x[i]) ^ (1 << 31)));
  out[(i + 768)] = __powf(y[i], 0x1.8p+0f/*1.500000e+00*/);
  out[(i + 832)] = ((float)((double)erff(x[i]) + tanh((double)y[i])));
  out[(i + 896)] = __saturatef(x[i]);
}

extern "C" __global__ void __launch_bounds__(64) integers_kernel(int* __restrict__ x, int* __restrict__ out) {
  int i = ((int)threadIdx.x);
  out[i] = __clz(x[i]);
  out[(i + 64)] = __popc(((unsigned)x[i]));
  out[(i + 128)] = __ffs(x[i]);
  out[(i + 192)] = ((int)__umulhi(((unsigned)x[i]), 3000000000u));
  out[(i + 256)] = max(x[i], (i - 32));
  out[(i + 320)] = ((int)min(((int64_t)x[i]), ((int64_t)7)));
  out[(i + 384)] = __float2int_rn((((float)x[i]) * 0x1p-1f/*5.000000e-01*/));
}
