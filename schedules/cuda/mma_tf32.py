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

from tvm_na.schedules.cuda.mma import columns_first, registered_load, registered_multiply, swapped, unrolled


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


@functools.cache
def load_left() -> str:
    """The name of the intrinsic that loads [row, column] from shared memory to ``left``."""

    def row_of(lane: Any, half: Any, stride: Any) -> Any:
        return stride * (lane % 16) + 8 * half + 4 * (lane // 16)

    return registered_load("load_left_tf32", "float32", left, _load(row_of))


@functools.cache
def load_right() -> str:
    """The name of the intrinsic that loads [column, row] of a right matrix from shared memory to ``right``."""

    def row_of(lane: Any, half: Any, stride: Any) -> Any:
        return stride * (8 * half + lane % 8) + 4 * (lane // 8)

    return registered_load("load_right_tf32", "float32", right, _load(row_of))


@functools.cache
def load_right_transposed() -> str:
    """The name of the intrinsic that loads [row, column] of a right matrix from shared memory to ``right_of_product``.

    ``ldmatrix`` transposes numbers of 16 bits alone. Where rows begin 4 banks apart, modulo 16, the 32 lanes of each
    load meet 32 banks.
    """
    return registered_load("load_right_transposed_tf32", "float32", swapped(right_of_product), _load_each)


@functools.cache
def multiply() -> str:
    """The name of the intrinsic for ``C[m, n] += A[m, k] * B[n, k]``, m, n and k in 16, A as ``left``.

    As exact as float32 but for 2^-20 of a product: a number is one of TF32 and what it leaves, and of the four products
    of these only that of what both leave is left out.
    """
    return registered_multiply("multiply_tf32", "float32", left, right, 16, _multiply_parts)


@functools.cache
def multiply_product() -> str:
    """The same in plain TF32 with A as ``left_of_product``."""
    layouts = (left_of_product, right_of_product)
    return registered_multiply("multiply_product_tf32", "float32", *layouts, 16, _multiply(16))


@functools.cache
def multiply_narrow() -> str:
    """The same with n in 8; half of the numbers of B and C."""
    layouts = (left_of_product, right_of_product)
    return registered_multiply("multiply_narrow_tf32", "float32", *layouts, 8, _multiply(8))


# --- what a lane does


def _load(row_of: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any, Any], None]:
    """Two times four matrices of 8 x 4, which ``ldmatrix`` takes for 8 x 8 of 16 bits; each lane names a row of one."""
    from tvm.script import tirx as T

    def load(shared: Any, warp: Any, stride: Any, lane: Any) -> None:
        with unrolled("half_of_numbers", 2) as half:
            place = warp.elem_offset + lane * 8 + 4 * half
            source, row = shared.access_ptr("r"), row_of(lane, half, stride)
            T.evaluate(T.ptx_legacy.ldmatrix(False, 4, ".b16", warp.data, place, source, row, dtype="float32"))

    return load


def _load_each(shared: Any, warp: Any, stride: Any, lane: Any) -> None:
    """Each lane reads its numbers one by one."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with T.grid(2, 2, 2) as (n8, k8, pair):
        for name, variable in (("n8", n8), ("k8", k8), ("pair", pair)):
            IRBuilder.name(name, variable)
        found = shared[8 * k8 + lane % 4 * 2 + pair, 8 * n8 + lane // 4]
        T.buffer_store(warp, found, [lane, 4 * n8 + 2 * k8 + pair])


def _instruction(a: tuple[Any, Any], b: tuple[Any, Any], c: tuple[Any, Any]) -> None:
    """``mma`` of the numbers of a lane from three places on, each a pointer and an offset."""
    from tvm.script import tirx as T

    kinds = ("m16n8k8", "row", "col", "tf32", "tf32", "fp32")
    T.evaluate(T.ptx_legacy.mma(*kinds, *a, *b, *c, False, dtype="float32"))


def _multiply(width: int) -> Callable[[Any, Any, Any, Any], None]:
    """Two instructions, of 8 keys each, for each 8 columns of the product."""
    numbers = width // 2

    def multiply_lane(A: Any, B: Any, C: Any, lane: Any) -> None:
        with unrolled("k8", 2) as k8, unrolled("n8", width // 8) as n8:
            _instruction(
                (A.data, A.elem_offset + lane * 8 + 4 * k8),
                (B.data, B.elem_offset + lane * numbers + 4 * n8 + 2 * k8),
                (C.data, C.elem_offset + lane * numbers + 4 * n8),
            )

    return multiply_lane


def _multiply_parts(A: Any, B: Any, C: Any, lane: Any) -> None:
    """Three times as many: of what TF32 takes of both, and of that of each and what it leaves of the other."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    def taken(x: Any) -> Any:
        return T.reinterpret("float32", T.bitwise_and(T.reinterpret("int32", x), -(1 << 13)))

    a_parts = T.alloc_buffer((16,), "float32", scope="local")
    b_parts = T.alloc_buffer((16,), "float32", scope="local")
    for name, buffer in (("a_parts", a_parts), ("b_parts", b_parts)):
        IRBuilder.name(name, buffer)
    with unrolled("n", 8) as n:
        T.buffer_store(a_parts, taken(A[lane, n]), [n])
        T.buffer_store(b_parts, taken(B[lane, n]), [n])
        T.buffer_store(a_parts, A[lane, n] - taken(A[lane, n]), [8 + n])  # exact; NaN for an infinite number
        T.buffer_store(b_parts, B[lane, n] - taken(B[lane, n]), [8 + n])
    with unrolled("k8", 2) as k8, unrolled("n8", 2) as n8, unrolled("part", 3) as part:
        _instruction(
            (a_parts.data, part % 2 * 8 + 4 * k8),
            (b_parts.data, part // 2 * 8 + 4 * n8 + 2 * k8),
            (C.data, C.elem_offset + lane * 8 + 4 * n8),
        )
