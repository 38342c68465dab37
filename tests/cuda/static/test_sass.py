"""Loops of machine code, and how often they are gone through, by made-up code in both languages."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_na.cuda.static.loops import nest_of
from tvm_na.cuda.static.ptx import functions_of
from tvm_na.cuda.static.sass import Region, lines_of, regions_of


def machine(*lines: str) -> str:
    code = "".join(f"        /*{16 * n:04x}*/ {line} ;   /* 0x0 */\n" for n, line in enumerate(lines))
    return f"\t\tFunction : other\n        /*0000*/  EXIT ;\n\t\tFunction : k\n{code}"


def ptx(body: str) -> str:
    return ".visible .entry k(\n.param .u32 k_param_0\n)\n{\n.reg .pred %p<3>;\n" + body + "\n}\n"


TWO_LOOPS = ptx("""
	ld.global.b32 %r1, [%rd1];
$A:
	ld.shared.b32 %r2, [%r3];
	add.s32 %r3, %r3, 4;
	@%p1 bra $A;
$B:
	ex2.approx.ftz.f32 %f1, %f2;
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f1};
	@%p2 bra $B;
	ret;
""")
TIMES = np.array([1.0, 4.0, 10.0, 1.0])


def regions(text: str, code: str = TWO_LOOPS, times: np.ndarray = TIMES) -> list[Region]:
    return regions_of(lines_of(text, "k"), functions_of(code)["k"], times)


def test_loops_in_the_same_order() -> None:
    text = machine(
        "LDG.E R1, [R2]",
        "LDS R2, [R3]",
        "@P0 BRA 0x10",
        "MUFU.EX2 R1, R2",
        "HMMA.16816.F32 R4, R4, R8, R4",
        "@!P1 BRA 0x30",
        "EXIT",
        "BRA 0x70",
        "NOP",
    )
    assert regions(text) == [Region(2, 1.0), Region(2, 4.0), Region(3, 10.0)]


def test_a_loop_that_the_assembler_wrote_out() -> None:
    """All of the first; of the second two rounds."""
    text = machine(
        "LDG.E R1, [R2]",
        *["LDS R2, [R3]"] * 4,
        *["MUFU.EX2 R1, R2", "HMMA.16816.F32 R4, R4, R8, R4"] * 2,
        "@P1 BRA 0x50",
        "EXIT",
    )
    assert regions(text) == [Region(6, 1.0), Region(5, 5.0)]


def test_loops_of_the_machines_own_make_it_one_region() -> None:
    text = machine(
        "LDG.E R1, [R2]",
        *["LDS R2, [R3]", "@P0 BRA 0x10", "LDS R2, [R3]", "@P0 BRA 0x30"],
        *["MUFU.EX2 R1, R2", "HMMA.16816.F32 R4, R4, R8, R4", "@P1 BRA 0x50", "EXIT"],
    )
    (whole,) = regions(text)
    assert whole.instructions == 9 and whole.times == pytest.approx((1 + 4 + 10 + 10) / 5)


def test_what_only_parted_warps_come_to_does_not_count() -> None:
    text = machine(
        "LDG.E R1, [R2]",
        "BRA.DIV UR4, 0x60",
        "LDS R2, [R3]",
        "@P0 BRA 0x20",
        *["HMMA.16816.F32 R4, R4, R8, R4", "EXIT"],
        "SHFL.BFLY R1, R2, 0x1, 0x1f",
        "BRA 0x20",
    )
    code = ptx("ld.global.b32 %r1, [%rd1];\n$A: ld.shared.b32 %r2, [%r3];\n@%p1 bra $A;\nmma.sync.aligned {%f1};\nret;")
    assert regions(text, code, np.array([1.0, 3.0, 1.0])) == [Region(4, 1.0), Region(2, 3.0)]


def test_natural_loops_one_in_the_other() -> None:
    nest = nest_of([[1], [2, 6], [3], [2, 4], [1, 5], [1], [], [1]])
    assert [(loop.header, sorted(loop.body)) for loop in nest.loops] == [(1, [1, 2, 3, 4, 5]), (2, [2, 3])]
    assert nest.shape == [-1, 0] and nest.reached == {*range(7)}
    assert [nest.region(block) for block in range(7)] == [-1, 0, 1, 1, 0, 0, -1]
    assert nest.without([0]).shape == [-1] and nest.without([1]).region(2) == 0
