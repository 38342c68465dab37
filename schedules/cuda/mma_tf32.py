"""Tensor cores as TVM's tensor intrinsics: matrices of 16 x 16 in TF32, whose products are summed in float32.

As in ``mma.py``, but a register holds one number, and the four lanes of a row of a left matrix have its columns l and
l + 4, not 2l and 2l + 1 as of a product. For a product to be the next left matrix without changing lanes, the sums over
keys take those in another order: column l of a left matrix of weights is key 2l, and column l + 4 is key 2l + 1. So are
the rows of the right matrix of values, which changes where in shared memory they are read, and nothing else.

Source: PTX ISA, "Warp-level matrix instructions": mma.m16n8k8 and ldmatrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm_na.schedules.cuda.mma import clear, columns_first, registered, rows_first

Layout = Callable[[Any, Any], tuple[Any, Any]]


def left(i: Any, k: Any) -> tuple[Any, Any]:
    """(lane, number) of element (i, k) of a left matrix."""
    return 4 * (i % 8) + k % 4, 4 * (k // 8) + 2 * (k % 8 // 4) + i // 8


def right(n: Any, k: Any) -> tuple[Any, Any]:
    """(lane, number) of a right matrix: of its ``n``-th column, in row ``k``."""
    return 4 * (n % 8) + k % 4, 4 * (n // 8) + 2 * (k // 8) + k % 8 // 4


def left_of_product(i: Any, k: Any) -> tuple[Any, Any]:
    """As :func:`left`, of what was a product: lanes keep what they have, in another order of their numbers."""
    return 4 * (i % 8) + k % 8 // 2, 4 * (k // 8) + 2 * (k % 2) + i // 8


#: As :func:`right`, of what meets a :func:`left_of_product`.
right_of_product = columns_first


def register() -> None:
    """Make TVM know all of them, before it meets one in a tuning record."""
    for intrinsic in (load_left, load_right, load_right_transposed, multiply, multiply_product, multiply_narrow):
        intrinsic()
    for width in (8, 16):
        clear(width)


@functools.cache
def load_left() -> str:
    """The name of the intrinsic that loads [row, column] from shared memory to ``left``."""

    def row_of(lane: Any, half: Any, stride: Any) -> Any:
        return stride * (lane % 16) + 8 * half + 4 * (lane // 16)

    return registered("load_left_tf32", _load_description(left), _load(row_of))


@functools.cache
def load_right() -> str:
    """The name of the intrinsic that loads [column, row] of a right matrix from shared memory to ``right``."""

    def row_of(lane: Any, half: Any, stride: Any) -> Any:
        return stride * (8 * half + lane % 8) + 4 * (lane // 8)

    return registered("load_right_tf32", _load_description(right), _load(row_of))


@functools.cache
def load_right_transposed() -> str:
    """The name of the intrinsic that loads [row, column] of a right matrix from shared memory to ``right_of_product``.

    ``ldmatrix`` transposes numbers of 16 bits alone. Where rows begin 4 banks apart, modulo 16, the 32 lanes of each
    load meet 32 banks.
    """

    def layout(k: Any, n: Any) -> tuple[Any, Any]:
        return right_of_product(n, k)

    return registered("load_right_transposed_tf32", _load_description(layout), _load_each())


@functools.cache
def multiply() -> str:
    """The name of the intrinsic for ``C[m, n] += A[m, k] * B[n, k]``, m, n and k in 16, A as ``left``.

    As exact as float32 but for 2^-20 of a product: a number is one of TF32 and what it leaves, and of the four products
    of these only that of what both leave is left out.
    """
    return registered("multiply_tf32", _multiply_description(left, right, 16), _multiply_parts())


@functools.cache
def multiply_product() -> str:
    """The same in plain TF32 with A as ``left_of_product``."""
    description = _multiply_description(left_of_product, right_of_product, 16)
    return registered("multiply_product_tf32", description, _multiply(16))


@functools.cache
def multiply_narrow() -> str:
    """The same with n in 8; half of the numbers of B and C."""
    description = _multiply_description(left_of_product, right_of_product, 8)
    return registered("multiply_narrow_tf32", description, _multiply(8))


def _load_description(layout: Layout) -> Any:
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def description(warp_handle: T.handle, shared_handle: T.handle) -> None:
        shared = T.match_buffer(shared_handle, (16, 16), "float32", align=64, offset_factor=4, scope="shared.dyn")
        warp = T.match_buffer(warp_handle, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
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

    return description


def _load(row_of: Callable[[Any, Any, Any], Any]) -> Any:
    """Two times four matrices of 8 x 4, which ``ldmatrix`` takes for 8 x 8 of 16 bits; each lane names a row of one."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def implementation(warp_handle: T.handle, shared_handle: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        shared = T.match_buffer(
            shared_handle, (16, 16), "float32", align=64, offset_factor=4, scope="shared.dyn", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                for half_of_numbers in T.unroll(2):
                    T.evaluate(
                        T.ptx_legacy.ldmatrix(
                            False,
                            4,
                            ".b16",
                            warp.data,
                            warp.elem_offset + lane * 8 + 4 * half_of_numbers,
                            shared.access_ptr("r"),
                            row_of(lane, half_of_numbers, s0),
                            dtype="float32",
                        )
                    )

    return implementation


def _load_each() -> Any:
    """Each lane reads its numbers one by one."""
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def implementation(warp_handle: T.handle, shared_handle: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        shared = T.match_buffer(
            shared_handle, (16, 16), "float32", align=64, offset_factor=4, scope="shared.dyn", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:16])
            T.writes(warp[0:32, 0:8])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                for n8, k8, pair in T.grid(2, 2, 2):
                    warp[lane, 4 * n8 + 2 * k8 + pair] = shared[8 * k8 + lane % 4 * 2 + pair, 8 * n8 + lane // 4]

    return implementation


def _multiply_description(left_layout: Layout, right_layout: Layout, width: int) -> Any:
    from tvm.script import tirx as T

    numbers = width // 2

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        C = T.match_buffer(c, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:numbers], A[0:32, 0:8], B[0:32, 0:numbers])
            T.writes(C[0:32, 0:numbers])
            for i, j, k in T.grid(16, width, 16):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    lane_a, at_a = T.meta_var(left_layout(vi, vk))
                    lane_b, at_b = T.meta_var(right_layout(vj, vk))
                    lane_c, at_c = T.meta_var(rows_first(vi, vj))
                    T.reads(C[lane_c, at_c], A[lane_a, at_a], B[lane_b, at_b])
                    T.writes(C[lane_c, at_c])
                    C[lane_c, at_c] += A[lane_a, at_a] * B[lane_b, at_b]

    return description


def _instruction(a: tuple[Any, Any], b: tuple[Any, Any], c: tuple[Any, Any]) -> Any:
    """``mma`` of the numbers of a lane from three places on, each a pointer and an offset."""
    from tvm.script import tirx as T

    kinds = ("m16n8k8", "row", "col", "tf32", "tf32", "fp32")
    return T.ptx_legacy.mma(*kinds, *a, *b, *c, False, dtype="float32")


def _multiply(width: int) -> Any:
    """Two instructions, of 8 keys each, for each 8 columns of the product."""
    from tvm.script import tirx as T

    numbers = width // 2

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        C = T.match_buffer(c, (32, numbers), "float32", align=64, offset_factor=numbers, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:numbers], A[0:32, 0:8], B[0:32, 0:numbers])
            T.writes(C[0:32, 0:numbers])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                for k8 in T.unroll(2):
                    for n8 in T.unroll(width // 8):
                        T.evaluate(
                            _instruction(
                                (A.data, A.elem_offset + lane * 8 + 4 * k8),
                                (B.data, B.elem_offset + lane * numbers + 4 * n8 + 2 * k8),
                                (C.data, C.elem_offset + lane * numbers + 4 * n8),
                            )
                        )

    return implementation


def _multiply_parts() -> Any:
    """Three times as many: of what TF32 takes of both, and of that of each and what it leaves of the other."""
    from tvm.script import tirx as T

    def taken(x: Any) -> Any:
        return T.reinterpret("float32", T.bitwise_and(T.reinterpret("int32", x), -(1 << 13)))

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        B = T.match_buffer(b, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        C = T.match_buffer(c, (32, 8), "float32", align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(C[0:32, 0:8], A[0:32, 0:8], B[0:32, 0:8])
            T.writes(C[0:32, 0:8])
            for lane in T.thread_binding(0, 32, "threadIdx.x"):
                a_parts = T.alloc_buffer((16,), "float32", scope="local")
                b_parts = T.alloc_buffer((16,), "float32", scope="local")
                for n in T.unroll(8):
                    a_parts[n] = taken(A[lane, n])
                    b_parts[n] = taken(B[lane, n])
                    a_parts[8 + n] = A[lane, n] - taken(A[lane, n])  # exact; NaN for an infinite number
                    b_parts[8 + n] = B[lane, n] - taken(B[lane, n])
                for k8 in T.unroll(2):
                    for n8 in T.unroll(2):
                        for part in T.unroll(3):
                            T.evaluate(
                                _instruction(
                                    (a_parts.data, part % 2 * 8 + 4 * k8),
                                    (b_parts.data, part // 2 * 8 + 4 * n8 + 2 * k8),
                                    (C.data, C.elem_offset + lane * 8 + 4 * n8),
                                )
                            )

    return implementation
