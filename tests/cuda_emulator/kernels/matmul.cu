// c = a b with a of m x k, b of k x n, n a multiple of 32 and k of 16: tiles of 32 x 32, copied while others are
// multiplied, by four warps of which each has 16 x 16.
#include <cuda_fp16.h>
#define uchar unsigned char

__forceinline__ __device__ void tvm_builtin_ptx_cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__forceinline__ __device__ void tvm_builtin_ptx_cp_async_wait_group_1() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}
__forceinline__ __device__ void ptx_cp_async_legacy_cg_16_2_2(void* dst, int dst_off, void* src, int src_off) {
  unsigned char* dst_p = (unsigned char*)dst + dst_off * 2;
  unsigned char* src_p = (unsigned char*)src + src_off * 2;
  unsigned int dst_addr = __cvta_generic_to_shared(dst_p);
  asm volatile("cp.async.cg.shared.global [%0], [%1], %2;"
    :: "r"(dst_addr), "l"(src_p), "n"(16));
}
__forceinline__ __device__ void ptx_cp_async_legacy_pred_cg_16_2_2(void* dst, int dst_off, void* src, int src_off, int predicate) {
  unsigned char* dst_p = (unsigned char*)dst + dst_off * 2;
  unsigned char* src_p = (unsigned char*)src + src_off * 2;
  unsigned int dst_addr = __cvta_generic_to_shared(dst_p);
  __asm__ __volatile__(
    "{\n"
    " .reg .pred p;\n"
    " setp.eq.u32 p, %3, 1;\n"
    " @p cp.async.cg.shared.global [%0], [%1], %2;\n"
    " @!p st.shared.v4.u32 [%0], {%4, %4, %4, %4};\n"
    "}\n"
    :: "r"(dst_addr), "l"(src_p), "n"(16), "r"(predicate), "r"(0)
  );
}

__forceinline__ __device__ void load_tiles(half* a_shared, half* b_shared, half* a, half* b, int step, int m, int n, int k) {
  int thread = ((((int)threadIdx.y) * 32) + ((int)threadIdx.x));
  if (thread < 64) {
    int row = (thread >> 1), column = ((thread & 1) * 8);
    int of = ((((int)blockIdx.y) * 32) + row);
    ptx_cp_async_legacy_pred_cg_16_2_2(a_shared, ((((step & 1) * 32) + row) * 24) + column, a, (of * k) + (step * 16) + column, of < m);
  } else {
    int row = ((thread - 64) >> 2), column = ((thread & 3) * 8);
    ptx_cp_async_legacy_cg_16_2_2(b_shared, ((((step & 1) * 16) + row) * 40) + column, b, (((step * 16) + row) * n) + (((int)blockIdx.x) * 32) + column);
  }
}

extern "C" __global__ void __launch_bounds__(128) matmul_kernel(half* __restrict__ a, half* __restrict__ b, float* __restrict__ c, int m, int n, int k) {
  extern __shared__ __align__(64) uchar buf_dyn_shmem[];
  half* a_shared = (half*)buf_dyn_shmem;
  half* b_shared = ((half*)buf_dyn_shmem) + 1536;
  alignas(64) half a_warp[8];
  alignas(64) half b_warp[8];
  alignas(64) float c_warp[8];
  int row = ((((int)threadIdx.y) >> 1) * 16), column = ((((int)threadIdx.y) & 1) * 16);
  for (int i = 0; i < 8; ++i) {
    c_warp[i] = 0x0p+0f/*0.000000e+00*/;
  }
  load_tiles(a_shared, b_shared, a, b, 0, m, n, k);
  tvm_builtin_ptx_cp_async_commit_group();
  for (int step = 0; step < (k >> 4); ++step) {
    if ((step + 1) < (k >> 4)) {
      load_tiles(a_shared, b_shared, a, b, step + 1, m, n, k);
    }
    tvm_builtin_ptx_cp_async_commit_group();
    tvm_builtin_ptx_cp_async_wait_group_1();
    __syncthreads();
    {
      unsigned int addr = __cvta_generic_to_shared(a_shared + (((((step & 1) * 32) + row + (((int)threadIdx.x) & 15)) * 24) + ((((int)threadIdx.x) >> 4) * 8)));
      __asm__ __volatile__(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
        "{%0, %1, %2, %3}, [%4];\n"
        : "=r"(((unsigned *)(a_warp + 0))[0]), "=r"(((unsigned *)(a_warp + 0))[1]), "=r"(((unsigned *)(a_warp + 0))[2]), "=r"(((unsigned *)(a_warp + 0))[3])
        : "r"(addr)
      );
    }
    {
      unsigned int addr = __cvta_generic_to_shared(b_shared + (((((step & 1) * 16) + (((int)threadIdx.x) & 15)) * 40) + column + ((((int)threadIdx.x) >> 4) * 8)));
      __asm__ __volatile__(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
        "{%0, %1, %2, %3}, [%4];\n"
        : "=r"(((unsigned *)(b_warp + 0))[0]), "=r"(((unsigned *)(b_warp + 0))[1]), "=r"(((unsigned *)(b_warp + 0))[2]), "=r"(((unsigned *)(b_warp + 0))[3])
        : "r"(addr)
      );
    }
    #pragma unroll
    for (int j = 0; j < 2; ++j) {
      __asm__ __volatile__(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
        :  "=f"(((float *)(c_warp + (j * 4)))[0]), "=f"(((float *)(c_warp + (j * 4)))[1]), "=f"(((float *)(c_warp + (j * 4)))[2]), "=f"(((float *)(c_warp + (j * 4)))[3])
        : "r"(((unsigned *)(a_warp + 0))[0]), "r"(((unsigned *)(a_warp + 0))[1]), "r"(((unsigned *)(a_warp + 0))[2]), "r"(((unsigned *)(a_warp + 0))[3]), "r"(((unsigned *)(b_warp + (j * 4)))[0]), "r"(((unsigned *)(b_warp + (j * 4)))[1]), "f"(((float *)(c_warp + (j * 4)))[0]), "f"(((float *)(c_warp + (j * 4)))[1]), "f"(((float *)(c_warp + (j * 4)))[2]), "f"(((float *)(c_warp + (j * 4)))[3]));
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    int of = ((((int)blockIdx.y) * 32) + row + ((i & 1) * 8) + (((int)threadIdx.x) >> 2));
    if (of < m) {
      *(float2*)(c + (((of * n) + (((int)blockIdx.x) * 32)) + column + ((i >> 1) * 8) + ((((int)threadIdx.x) & 3) * 2))) = make_float2(c_warp[((i >> 1) * 4) + ((i & 1) * 2)], c_warp[((i >> 1) * 4) + ((i & 1) * 2) + 1]);
    }
  }
}
