"""What the emulator refuses: accesses that a GPU refuses, launches, and CUDA that it does not know."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda_emulator.checks import kernel, product_right, run, zeros
from tests.cuda_emulator.emulate import Emulated
from tests.cuda_emulator.errors import (
    ArithmeticFault,
    Divergence,
    LaunchRefused,
    MisalignedAccess,
    OutOfBounds,
    UnsupportedCuda,
)
from tests.cuda_emulator.kernels import source
from tests.cuda_emulator.mutate import replaced


def test_misaligned_vectors() -> None:
    a, b = np.zeros(1028, np.float32), np.zeros(1024, np.float32)
    with pytest.raises(
        MisalignedAccess, match=r"thread \(\d+, 0, 0\).*float4.*multiple of 16\n    line 6: float4 v_ ="
    ):
        Emulated(source("vectors")).launch("scale_kernel", (4, 1, 1), (64, 1, 1), [a, b, 2, 1.0])
    with pytest.raises(MisalignedAccess, match="uint2"):
        run("__shared__ alignas(64) float s[130];\n*(uint2*)(s + threadIdx.x + 1) = make_uint2(1, 2);", zeros())


def test_misaligned_rows_of_ldmatrix() -> None:
    text = replaced(source("matmul"), "* 24) + ((", "* 24) + 4 + ((")
    with pytest.raises(
        MisalignedAccess, match=r"ldmatrix at address \d+ of shared memory, which is not a multiple of 16"
    ):
        product_right(text, 0, True)


@pytest.mark.parametrize("late", [True, False])
def test_misaligned_copies(late: bool) -> None:
    from_global = replaced(source("matmul"), "+ (step * 16) + column, of", "+ (step * 16) + column + 4, of")
    with pytest.raises(MisalignedAccess, match="cp.async from a global address that is not a multiple of 16"):
        product_right(from_global, 0, late)
    to_shared = replaced(source("matmul"), "+ row) * 40) + column", "+ row) * 40) + column + 2")
    with pytest.raises(MisalignedAccess, match="cp.async at address"):
        product_right(to_shared, 0, late)


@pytest.mark.parametrize("late", [True, False])
def test_copies_outside_of_shared_memory(late: bool) -> None:
    text = replaced(source("matmul"), "* 40) + column, b", "* 40) + column + 640, b")
    with pytest.raises(OutOfBounds, match="cp.async of 16 bytes outside of the shared arrays"):
        product_right(text, 0, late)


def test_shared_arrays_have_ends() -> None:
    with pytest.raises(OutOfBounds, match=r"index 64 of an array of type 'float \[64\]'\n    line 5: s\[i \+ 1\]"):
        run("__shared__ float s[64];\nint i = threadIdx.x;\ns[i + 1] = 0;", zeros())
    with pytest.raises(OutOfBounds, match=r"block \(0, 0, 0\): a write behind the shared array s"):
        run("__shared__ float s[64];\n*(s + threadIdx.x + 1) = 0;", zeros())
    with pytest.raises(OutOfBounds, match="a write behind the shared array d"):
        run("extern __shared__ float d[];\nd[threadIdx.x] = 1;", zeros(), shared_bytes=63 * 4)
    run("extern __shared__ float d[];\nd[threadIdx.x] = 1;", zeros(), shared_bytes=64 * 4)


def test_shared_memory_starts_as_nan() -> None:
    a = zeros(128)
    body = "__shared__ float s[64];\nextern __shared__ float d[];\nint i = threadIdx.x;"
    run(f"{body} a[i] = s[i]; a[i + 64] = d[i]; s[i] = d[i] = 1;", a, shared_bytes=256)
    assert np.isnan(a).all()


def test_there_is_no_more_shared_memory_than_a_gpu_has() -> None:
    with pytest.raises(UnsupportedCuda, match="no room for the shared array s"):
        run("__shared__ float s[12289];\na[threadIdx.x] = s[threadIdx.x];", zeros())
    with pytest.raises(LaunchRefused, match="shared_bytes"):
        run("a[0] = 0;", zeros(), shared_bytes=228 * 1024)


@pytest.mark.parametrize(
    ("index", "where"),
    [("65536 + i", "bytes behind the end of array argument 0, which has 256"), ("i - 65536", "before the start of")],
)
@pytest.mark.parametrize("reads", [True, False])
def test_arguments_have_ends(index: str, where: str, reads: bool) -> None:
    statement = f"a[i] = a[{index}];" if reads else f"a[{index}] = 1;"
    with pytest.raises(OutOfBounds, match=where):
        run(f"int i = threadIdx.x; {statement}", zeros())


def test_one_step_beside_an_argument() -> None:
    with pytest.raises(OutOfBounds, match=r"an access 0 bytes behind the end of array argument 0, which has 256"):
        run("a[threadIdx.x + 1] = 1;", zeros())
    with pytest.raises(OutOfBounds, match="a write beside array argument 0"):
        run("a[threadIdx.x] = 1; a[-1] = 1;", zeros())
    with pytest.raises(OutOfBounds, match="a write beside array argument 0"):
        run("a[threadIdx.x] = 1; a[65] = 1;", zeros(65))


def test_read_only_arrays_and_arrays_given_twice() -> None:
    fixed, a = zeros(), zeros()
    fixed.flags.writeable = False
    parameters = "float* __restrict__ a, float* __restrict__ b"
    run("b[threadIdx.x] = a[threadIdx.x] + 1;", fixed, a, parameters=parameters)
    assert (a == 1).all()
    with pytest.raises(OutOfBounds, match="a write to the read-only array argument 1"):
        run("b[threadIdx.x] = a[threadIdx.x] + 1;", a, fixed, parameters=parameters)
    run("a[threadIdx.x] += 1; b[threadIdx.x] += 1;", a, a, parameters=parameters)
    assert (a == 3).all()
    both = zeros(128)
    with pytest.raises(LaunchRefused, match="share some of their memory"):
        run("b[threadIdx.x] = a[threadIdx.x];", both[:96], both[64:], parameters=parameters)


def test_errors_leave_arrays_alone_and_the_next_launch_works() -> None:
    a = zeros()
    for _ in range(3):
        with pytest.raises(Divergence):
            run("a[threadIdx.x] = 5; if (threadIdx.x < 40) { __syncthreads(); }", a)
        assert (a == 0).all()
    run("a[threadIdx.x] = threadIdx.x; __syncthreads();", a)
    np.testing.assert_array_equal(a, np.arange(64))


def test_integer_division_by_zero() -> None:
    with pytest.raises(ArithmeticFault, match=r"thread \(0, 0, 0\): an integer division by zero"):
        run("a[threadIdx.x] = 64 / (int)threadIdx.x;", zeros())


UNKNOWN = {
    "a[0] = __match_any_sync(0xffffffff, 1);": "'__match_any_sync' was not declared.*\n    a\\[0\\] = __match_any",
    'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");': "inline assembly: wgmma.fence.sync.aligned",
    'asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0}, {%0}, {%0}, {%0};" :: "f"(a[0]));': (
        "inline assembly: mma.sync.aligned.m16n8k32"
    ),
    'asm volatile("bar.sync 1;");': "bar.sync of another barrier than 0",
    'asm volatile("cp.async.cg.shared.global [%0], [%1], 8;" :: "r"(0), "l"(a));': "cp.async.cg of another size",
    "__shared__ float x[4], y[4];": "__shared__ float x\\[4\\], y\\[4\\]",
    "tex1Dfetch(0);": "'tex1Dfetch' was not declared",
}


@pytest.mark.parametrize("body", UNKNOWN)
def test_unknown_cuda_is_quoted(body: str) -> None:
    with pytest.raises(UnsupportedCuda, match=UNKNOWN[body]) as error:
        kernel(body)
    assert "line 3" in str(error.value)


def test_unknown_headers_and_parameters() -> None:
    with pytest.raises(UnsupportedCuda, match="cuda/barrier"):
        Emulated("#include <cuda/barrier>\n" + source("reduce"))
    with pytest.raises(UnsupportedCuda, match="CUtensorMap map"):
        kernel("", "const __grid_constant__ CUtensorMap map")
    with pytest.raises(UnsupportedCuda, match="no kernel"):
        Emulated("__device__ int f() { return 1; }")


def test_assembly_for_other_processors_is_left_alone() -> None:
    body = '#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900)\nasm("wgmma.fence;");\n#endif\na[threadIdx.x] = 1;'
    a = zeros()
    run(body, a)
    assert (a == 1).all()


def test_assembly_of_numbers_and_memory() -> None:
    body = r"""
  float x = 0x1p+1f, y; unsigned lane, both, bits;
  __shared__ alignas(16) float s[64];
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  asm volatile("{ .reg .pred p; .reg .b32 r; mov.b32 r, 7; setp.lt.u32 p, %1, 8; @p add.f32 %0, %0, 0f3F800000; }"
    : "+f"(y) : "r"(lane));
  unsigned to = __cvta_generic_to_shared(s + threadIdx.x);
  asm volatile("st.shared.f32 [%0], %1;" :: "r"(to), "f"(y) : "memory");
  __syncthreads();
  asm volatile("{ .reg .f32 t; ld.shared.f32 t, [%1+4]; mul.f32 %0, t, 0f40000000; }" : "=f"(y) : "r"(to & ~4u));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x), "f"(y));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(0x1.002p+0f));
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
    :: "l"(a + 4 * threadIdx.x), "f"(y), "r"(both), "r"(bits), "r"(lane) : "memory");
"""
    a = zeros(256)
    run(body, a)
    a = a.reshape(64, 4)
    lanes = np.arange(64) % 32
    values = np.where((lanes | 1) < 8, 10, 8)  # of the odd neighbor
    np.testing.assert_array_equal(a[:, 0], values)
    pairs = torch.from_numpy(a[:, 1].copy()).view(torch.bfloat16).view(64, 2).float()
    assert (pairs[:, 1] == 2).all() and torch.equal(pairs[:, 0], torch.from_numpy(values).float())
    np.testing.assert_array_equal(a[:, 2], 1 + 2.0**-10)
    np.testing.assert_array_equal(a[:, 3].view(np.uint32), lanes)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"block": (65, 1, 1)}, "at most 64 threads a block, by its launch bounds, got 65"),
    ({"block": (1, 1, 65)}, r"block: three numbers from 1 to \(1024, 1024, 64\)"),
    ({"grid": (0, 1, 1)}, "grid: three numbers from 1"),
    ({"args": [zeros()]}, r"arguments \(a, n\), got 1"),
    ({"args": [zeros().astype(np.float64), 1]}, r"a: an array of float32 for float\*, got float64"),
    ({"args": [torch.zeros(64).half(), 1]}, r"a: an array of float32 for float\*, got float16"),
    ({"args": [zeros(128)[::2], 1]}, "a: an array that is not contiguous"),
    ({"args": [torch.zeros(8, 8).T, 1]}, "a: a tensor that is not contiguous"),
    ({"args": [1, 1]}, r"a: an array for float\*, got int"),
    ({"args": [zeros(), 2**31]}, "n: an integer that int can hold, got 2147483648"),
    ({"args": [zeros(), 0.5]}, "n: an integer that int can hold, got 0.5"),
    ({"name": "other"}, "no kernel 'other'; there are k"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_launches_that_do_not_suit_the_kernel(change: dict[str, Any], message: str) -> None:
    kernels = kernel("a[threadIdx.x] = n;", "float* __restrict__ a, int n")
    a = zeros()
    launch: dict[str, Any] = {"name": "k", "grid": (1, 1, 1), "block": (64, 1, 1), "args": [a, -7]}
    kernels.launch(**launch)
    assert (a == -7).all()
    with pytest.raises(LaunchRefused, match=message):
        kernels.launch(**{**launch, **change})


def test_messages_name_places_in_the_source() -> None:
    """Lines of the translated source are those of the original, whatever the translation made of them."""
    with pytest.raises(OutOfBounds) as error:
        product_right(replaced(source("matmul"), "float c_warp[8]", "float c_warp[4]"), 0, True)
    number, quoted = re.findall(r"line (\d+): (.*)", str(error.value))[0]
    assert source("matmul").splitlines()[int(number) - 1].strip() == quoted and "c_warp[i]" in quoted
