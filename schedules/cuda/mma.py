"""Tensor cores as TVM's tensor intrinsics: 16-bit matrices of 16 x 16, whose products are summed in float32.

A warp holds such a matrix in scope ``warp`` as [32 lanes, 8 numbers of a lane], in the layouts below. TVM has such
intrinsics of its own, for float16 alone, and 250 others in one module, whose import takes half a minute.

Source: PTX ISA, "Warp-level matrix instructions": mma.m16n8k16 and ldmatrix.
"""

from __future__ import annotations

import functools
from typing import Any

_NAMES = {"float16": "fp16", "bfloat16": "bf16"}


def rows_first(i: Any, j: Any) -> tuple[Any, Any]:
    """(lane, number) of element (i, j) of a left matrix or a product."""
    return 4 * (i % 8) + (j % 8) // 2, 4 * (j // 8) + 2 * (i // 8) + j % 2


def columns_first(n: Any, k: Any) -> tuple[Any, Any]:
    """(lane, number) of a right matrix: of its ``n``-th column, in row ``k``."""
    return 4 * (n % 8) + (k % 8) // 2, 4 * (n // 8) + 2 * (k // 8) + k % 2


def lanes_of_rows(i: Any, lane: Any) -> tuple[Any, Any]:
    """(lane, number) of what each of the four lanes of row ``i`` has of it."""
    return 4 * (i % 8) + lane, i // 8


def register(dtype: str) -> None:
    """Make TVM know all of them, before it meets one in a tuning record."""
    for name in (load_left, load_right, load_right_transposed, multiply, multiply_narrow):
        name(dtype)
    for width in (8, 16):
        clear(width)


@functools.cache
def load_left(dtype: str) -> str:
    """The name of the intrinsic that loads [row, column] from shared memory to ``rows_first``."""
    return registered(f"load_left_{dtype}", *_load(dtype, rows_first, swapped=False, transposed=False))


@functools.cache
def load_right(dtype: str) -> str:
    """The name of the intrinsic that loads [column, row] of a right matrix from shared memory to ``columns_first``."""
    return registered(f"load_right_{dtype}", *_load(dtype, columns_first, swapped=True, transposed=False))


@functools.cache
def load_right_transposed(dtype: str) -> str:
    """The name of the intrinsic that loads [row, column] of a right matrix from shared memory to ``columns_first``."""

    def layout(k: Any, n: Any) -> tuple[Any, Any]:
        return columns_first(n, k)

    return registered(f"load_right_transposed_{dtype}", *_load(dtype, layout, swapped=False, transposed=True))


@functools.cache
def multiply(dtype: str) -> str:
    """The name of the intrinsic for ``C[m, n] += A[m, k] * B[n, k]``, m, n and k in 16."""
    return registered(f"multiply_{dtype}", *_multiply(dtype, 16))


@functools.cache
def multiply_narrow(dtype: str) -> str:
    """The same with n in 8; half of each layout's numbers."""
    return registered(f"multiply_narrow_{dtype}", *_multiply(dtype, 8))


@functools.cache
def clear(width: int) -> str:
    """The name of the intrinsic that sets a float32 product of 16 x ``width`` (8 or 16) to 0."""
    return registered(f"clear_{width}", *_clear(width))


def registered(name: str, description: Any, implementation: Any) -> str:
    """The full name of an intrinsic, once TVM knows what it does (``description``) and how (``implementation``)."""
    from tvm.s_tir import TensorIntrin

    full = f"tvm_na.mma.{name}"
    TensorIntrin.register(full, description, implementation, override=True)
    return full


def _load(dtype: str, layout: Any, swapped: bool, transposed: bool) -> tuple[Any, Any]:
    """Loads four matrices of 8 x 8, each lane naming a row of one of them.

    Args:
        dtype: Of the elements.
        layout: Where an element of the 16 x 16 goes to.
        swapped: Whether the second matrix is the one on the right of the first, else the one below it.
        transposed: Whether lanes get columns of each of the four.
    """
    from tvm.script import tirx as T

    def row_of(lane: Any, stride: Any) -> Any:
        if swapped:
            return stride * 8 * (lane // 16) + stride * (lane % 8) + 8 * (lane % 16 // 8)
        return stride * (lane % 16) + 8 * (lane // 16)

    @T.prim_func(s_tir=True)
    def description(warp_handle: T.handle, shared_handle: T.handle) -> None:
        shared = T.match_buffer(shared_handle, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn")
        warp = T.match_buffer(warp_handle, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for i, j in T.grid(16, 16):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    lane, number = T.meta_var(layout(vi, vj))
                    T.reads(shared[vi, vj])
                    T.writes(warp[lane, number])
                    warp[lane, number] = shared[vi, vj]

    @T.prim_func(s_tir=True)
    def implementation(warp_handle: T.handle, shared_handle: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        shared = T.match_buffer(
            shared_handle, (16, 16), dtype, align=64, offset_factor=16, scope="shared.dyn", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(
                    T.ptx_legacy.ldmatrix(
                        transposed,
                        4,
                        ".b16",
                        warp.data,
                        warp.elem_offset + lane * 8,
                        shared.access_ptr("r"),
                        row_of(lane, s0),
                        dtype=dtype,
                    )
                )

    return description, implementation


def _multiply(dtype: str, width: int) -> tuple[Any, Any]:
    """One instruction for each 8 columns of the product."""
    from tvm.script import tirx as T

    name, numbers = _NAMES[dtype], width // 2

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, numbers), dtype, align=64, offset_factor=numbers, scope="warp")
        C = T.match_buffer(c, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:numbers], A[0:32, 0:8], B[0:32, 0:numbers])
            T.writes(C[0:32, 0:numbers])
            for i, j, k in T.grid(16, width, 16):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    lane_a, at_a = T.meta_var(rows_first(vi, vk))
                    lane_b, at_b = T.meta_var(columns_first(vj, vk))
                    lane_c, at_c = T.meta_var(rows_first(vi, vj))
                    T.reads(C[lane_c, at_c], A[lane_a, at_a], B[lane_b, at_b])
                    T.writes(C[lane_c, at_c])
                    C[lane_c, at_c] += T.Cast("float32", A[lane_a, at_a]) * T.Cast("float32", B[lane_b, at_b])

    def instruction(A: Any, B: Any, C: Any, lane: Any, n8: Any) -> Any:
        return T.ptx_legacy.mma(
            "m16n8k16",
            "row",
            "col",
            name,
            name,
            "fp32",
            A.data,
            A.elem_offset + lane * 8,
            B.data,
            B.elem_offset + lane * numbers + 4 * n8,
            C.data,
            C.elem_offset + lane * numbers + 4 * n8,
            False,
            dtype="float32",
        )

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, numbers), dtype, align=64, offset_factor=numbers, scope="warp")
        C = T.match_buffer(c, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:numbers], A[0:32, 0:8], B[0:32, 0:numbers])
            T.writes(C[0:32, 0:numbers])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                for n8 in T.unroll(width // 8):
                    T.evaluate(instruction(A, B, C, lane, n8))

    return description, implementation


def _clear(width: int) -> tuple[Any, Any]:
    from tvm.script import tirx as T

    numbers = width // 2

    @T.prim_func(s_tir=True)
    def description(c: T.handle) -> None:
        C = T.match_buffer(c, (32, numbers), "float32", scope="warp")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:numbers])
            for i, j in T.grid(16, width):
                with T.sblock("clear"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    lane, number = T.meta_var(rows_first(vi, vj))
                    T.reads()
                    T.writes(C[lane, number])
                    C[lane, number] = T.float32(0)

    @T.prim_func(s_tir=True)
    def implementation(c: T.handle) -> None:
        C = T.match_buffer(c, (32, numbers), "float32", scope="warp", offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:numbers])
            for _lane in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(T.cuda.mma_fill_legacy(numbers, C.data, C.elem_offset, dtype="float32"))

    return description, implementation
