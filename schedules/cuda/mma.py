"""Tensor cores as TVM's tensor intrinsics: 16-bit matrices of 16 x 16, whose products are summed in float32.

A warp holds such a matrix in scope ``warp`` as [32 lanes, 8 numbers of a lane], in the layouts below. TVM has such
intrinsics of its own, for float16 alone, and 250 others in one module, whose import takes half a minute.

Source: PTX ISA, "Warp-level matrix instructions": mma.m16n8k16 and ldmatrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: (lane, number) of element (i, j).
Layout = Callable[[Any, Any], tuple[Any, Any]]

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


def swapped(layout: Layout) -> Layout:
    """The layout of the transposed matrix."""
    return lambda k, n: layout(n, k)


@functools.cache
def load_left(dtype: str) -> str:
    """The name of the intrinsic that loads [row, column] from shared memory to ``rows_first``."""
    return registered_load(f"load_left_{dtype}", dtype, rows_first, _load(dtype, _left_row, transposed=False))


@functools.cache
def load_right(dtype: str) -> str:
    """The name of the intrinsic that loads [column, row] of a right matrix from shared memory to ``columns_first``."""

    def row_of(lane: Any, stride: Any) -> Any:
        return stride * 8 * (lane // 16) + stride * (lane % 8) + 8 * (lane % 16 // 8)

    return registered_load(f"load_right_{dtype}", dtype, columns_first, _load(dtype, row_of, transposed=False))


@functools.cache
def load_right_transposed(dtype: str) -> str:
    """The name of the intrinsic that loads [row, column] of a right matrix from shared memory to ``columns_first``."""
    load = _load(dtype, _left_row, transposed=True)
    return registered_load(f"load_right_transposed_{dtype}", dtype, swapped(columns_first), load)


@functools.cache
def multiply(dtype: str) -> str:
    """The name of the intrinsic for ``C[m, n] += A[m, k] * B[n, k]``, m, n and k in 16."""
    name = f"multiply_{dtype}"
    return registered_multiply(name, dtype, rows_first, columns_first, 16, _multiply(dtype, 16))


@functools.cache
def multiply_narrow(dtype: str) -> str:
    """The same with n in 8; half of each layout's numbers."""
    name = f"multiply_narrow_{dtype}"
    return registered_multiply(name, dtype, rows_first, columns_first, 8, _multiply(dtype, 8))


@functools.cache
def clear(width: int) -> str:
    """The name of the intrinsic that sets a float32 product of 16 x ``width`` (8 or 16) to 0."""
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

    return _registered(f"clear_{width}", description, implementation)


def _registered(name: str, description: Any, implementation: Any) -> str:
    """The full name of an intrinsic, once TVM knows what it does (``description``) and how (``implementation``)."""
    from tvm.s_tir import TensorIntrin

    full = f"tvm_na.mma.{name}"
    TensorIntrin.register(full, description, implementation, override=True)
    return full


# --- what all intrinsics have


def registered_load(name: str, dtype: str, layout: Layout, load: Callable[[Any, Any, Any, Any], None]) -> str:
    """The full name of an intrinsic that loads a matrix of 16 x 16 from shared memory.

    Args:
        name: Its name.
        dtype: Of the elements.
        layout: Where an element goes to.
        load: ``load(shared, warp, stride, lane)`` writes what a lane does; rows are so many elements apart.
    """
    from tvm.script import tirx as T

    aligned = 16 if dtype in _NAMES else 4  # elements

    @T.prim_func(s_tir=True)
    def description(warp_handle: T.handle, shared_handle: T.handle) -> None:
        shared = T.match_buffer(shared_handle, (16, 16), dtype, align=64, offset_factor=aligned, scope="shared.dyn")
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
            shared_handle, (16, 16), dtype, align=64, offset_factor=aligned, scope="shared.dyn", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                load(shared, warp, s0, lane)

    return _registered(name, description, implementation)


def registered_multiply(
    name: str,
    dtype: str,
    left: Layout,
    right: Layout,
    width: int,
    multiply_lane: Callable[[Any, Any, Any, Any], None],
) -> str:
    """The full name of an intrinsic that adds a product of 16 x ``width`` to one in ``rows_first``.

    Args:
        name: Its name.
        dtype: Of the matrices.
        left: The layout of the left one.
        right: The layout of the right one.
        width: Columns of the product, 8 or 16.
        multiply_lane: ``multiply_lane(A, B, C, lane)`` writes what a lane does.
    """
    from tvm.script import tirx as T

    numbers = width // 2

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
                    lane_a, at_a = T.meta_var(left(vi, vk))
                    lane_b, at_b = T.meta_var(right(vj, vk))
                    lane_c, at_c = T.meta_var(rows_first(vi, vj))
                    T.reads(C[lane_c, at_c], A[lane_a, at_a], B[lane_b, at_b])
                    T.writes(C[lane_c, at_c])
                    C[lane_c, at_c] += A[lane_a, at_a].astype("float32") * B[lane_b, at_b].astype("float32")

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), dtype, align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, numbers), dtype, align=64, offset_factor=numbers, scope="warp")
        C = T.match_buffer(c, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:numbers], A[0:32, 0:8], B[0:32, 0:numbers])
            T.writes(C[0:32, 0:numbers])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                multiply_lane(A, B, C, lane)

    return _registered(name, description, implementation)


# --- what a lane does, in 16 bits


def _left_row(lane: Any, stride: Any) -> Any:
    """Where the row of a matrix of 8 x 8 begins that a lane names: the second matrix is the one below the first."""
    return stride * (lane % 16) + 8 * (lane // 16)


def _load(dtype: str, row_of: Callable[[Any, Any], Any], transposed: bool) -> Callable[[Any, Any, Any, Any], None]:
    """Four matrices of 8 x 8; ``transposed``: lanes get columns of each of the four."""
    from tvm.script import tirx as T

    def load(shared: Any, warp: Any, stride: Any, lane: Any) -> None:
        place = warp.elem_offset + lane * 8
        source, row = shared.access_ptr("r"), row_of(lane, stride)
        T.evaluate(T.ptx_legacy.ldmatrix(transposed, 4, ".b16", warp.data, place, source, row, dtype=dtype))

    return load


def _multiply(dtype: str, width: int) -> Callable[[Any, Any, Any, Any], None]:
    """One instruction for each 8 columns of the product."""
    from tvm.script import tirx as T

    name, numbers = _NAMES[dtype], width // 2
    kinds = ("m16n8k16", "row", "col", name, name, "fp32")

    def multiply_lane(A: Any, B: Any, C: Any, lane: Any) -> None:
        with unrolled("n8", width // 8) as n8:
            right = (B.data, B.elem_offset + lane * numbers + 4 * n8)
            product = (C.data, C.elem_offset + lane * numbers + 4 * n8)
            left = (A.data, A.elem_offset + lane * 8)
            T.evaluate(T.ptx_legacy.mma(*kinds, *left, *right, *product, False, dtype="float32"))

    return multiply_lane


@contextmanager
def unrolled(name: str, extent: int) -> Iterator[Any]:
    """An unrolled loop in an intrinsic; yields its variable."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with T.unroll(0, extent) as variable:
        IRBuilder.name(name, variable)
        yield variable
