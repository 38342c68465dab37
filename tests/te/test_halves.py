"""Halves become float32 and come from it exactly as PyTorch has it, with and without instructions for float16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tvm_na.problems.base import HALVES
from tvm_na.te.common.halves import Conversions

WAYS = [("bfloat16", True), ("float16", True), ("float16", False)]


def kernel(dtype: str, instructions: bool, rounding: bool) -> Any:
    """``kernel(given, found)`` on some thousand numbers: from float32 to halves with ``rounding``, else back."""
    import tvm
    from tvm import s_tir, te

    from tvm_na.targets.target import detect_target

    convert = Conversions(dtype, "float32", instructions)
    given = te.placeholder((65536,), "float32" if rounding else dtype, name="given")
    way = convert.rounded if rounding else convert.widened
    schedule = s_tir.Schedule(
        te.create_prim_func([given, te.compute(given.shape, lambda i: way(given[i]), name="found")])
    )
    schedule.vectorize(schedule.split(schedule.get_loops(schedule.get_sblock("found"))[0], [None, 8])[1])
    return tvm.compile(schedule.mod, target=detect_target().tvm_target())["main"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit, but for which NaN it is."""
    bits = torch.int16 if one.itemsize == 2 else torch.int32
    return bool(((one.view(bits) == other.view(bits)) | (one.isnan() & other.isnan())).all())


@pytest.mark.parametrize(("dtype", "instructions"), WAYS)
def test_every_half_is_widened(dtype: str, instructions: bool) -> None:
    given = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    found = torch.full((65536,), torch.nan)
    kernel(dtype, instructions, False)(given, found)
    assert same(found, given.float())


@pytest.mark.parametrize(("dtype", "instructions"), WAYS)
def test_rounding(dtype: str, instructions: bool) -> None:
    """Any bits; halves, what lies in the middle of two, and next to that; the bits of NaN that would carry over."""
    round_ = kernel(dtype, instructions, True)
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype)).float()
    upper = torch.arange(65536, dtype=torch.int64) << 16
    torch.manual_seed(0)
    near = [halves.view(torch.int32) + off for off in (0, 1, -1, 0x1000, 0xFFF, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    some = [(upper + low).to(torch.int32) for low in (0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    some.append(torch.randint(-(2**31), 2**31 - 1, (65536,)).to(torch.int32))
    some.append((torch.randn(65536) * 2.0**-14).view(torch.int32))
    for bits in (*near, *some):
        given = bits.view(torch.float32)
        found = torch.full((65536,), torch.nan, dtype=getattr(torch, dtype))
        round_(given, found)
        assert same(found, given.to(found.dtype))


def test_what_has_one_dtype_is_not_converted() -> None:
    assert [Conversions(dtype, "float32").needed for dtype in (*HALVES, "float32")] == [True, True, False]
    assert not Conversions("float64", "float64").needed
