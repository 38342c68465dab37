"""Copies to shared memory that nothing waits for until all are under way: which they are, and what waits."""

from __future__ import annotations

from typing import Any

import tvm_ffi

from tests.cuda.cuda_funcs import row_sums
from tests.schedules.cuda_kernels import BAND, scheduled
from tvm_na.cuda.async_copies import asynchronous
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda.band import AT_ONCE, HEADS_IN_TURN


def band(dtype: str = "float16", sketch: str = AT_ONCE, kernel_size: int = 3) -> Any:
    problem = NAProblem.make((20, 21), kernel_size, 2, 16, bias=True, dtype=dtype)
    return scheduled(problem, 0, Plan(sketch), BAND).schedule.mod["main"]


def scopes(func: Any) -> tuple[int, int]:
    """Copies that are begun, and waits for them."""
    text = func.script()
    return text.count('"async_scope"'), text.count('"async_wait_queue_scope"')


def test_copies_are_begun_and_waited_for_once() -> None:
    """Queries, keys and values; not the table of biases, which is computed."""
    assert scopes(band()) == (0, 0)
    assert scopes(asynchronous(band())) == (3, 1)


def test_each_pass_waits_for_its_own() -> None:
    """Queries; the keys of the first pass; keys and values of the second."""
    assert scopes(asynchronous(band(kernel_size=20))) == (4, 3)


def test_what_is_rounded_is_no_copy() -> None:
    assert scopes(asynchronous(band(TF32))) == (2, 1)


def test_others_stay_as_they_are() -> None:
    pipelined, plain = band(sketch=HEADS_IN_TURN), row_sums()["main"]
    assert asynchronous(pipelined).same_as(pipelined)
    assert tvm_ffi.structural_equal(asynchronous(plain), plain)
