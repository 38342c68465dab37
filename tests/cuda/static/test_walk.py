"""Walks through PTX that was written by hand: loops, branches that part a warp, predicates, data."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_na.cuda.static import walk as walks
from tvm_na.cuda.static.ptx import functions_of
from tvm_na.cuda.static.walk import Walked, walk

HEAD = """
.version 9.0
.target sm_90
.extern .shared .align 16 .b8 dynamic[];
.visible .entry k(
	.param .u64 .ptr .align 1 k_param_0,
	.param .u64 k_param_1,
	.param .u32 k_param_2 // the batch
)
.maxntid 64, 1, 1
{
	.reg .pred 	%p<9>;
	.shared .align 16 .b8 fixed[48];
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd5, [k_param_1];
	ld.param.b32 	%r9, [k_param_2];
	cvta.to.global.u64 	%rd2, %rd1;
	mov.u32 	%r1, %tid.x;
"""


def walked(body: str, threads: int = 64, batch: int = 3, sample: tuple[int, ...] = (0,), blocks: int = 8) -> Walked:
    (function,) = functions_of(HEAD + body + "\n}\n").values()
    return walk(function, (threads, 1, 1), blocks, sample, batch)


def test_a_loop_is_walked_as_often_as_it_says() -> None:
    found = walked("""
	mov.b32 	%r2, 0;
$L__BB0_1:
	mad.lo.s32 	%r3, %r2, 7, %r1;
	add.s32 	%r2, %r2, 2;
	setp.lt.u32 	%p1, %r2, %r9;
	@%p1 bra 	$L__BB0_1;
	ret;
""", batch=11)  # fmt: skip
    assert found.executed.tolist() == [[1, 1], [6, 6], [1, 1]]


def test_threads_that_part_meet_again() -> None:
    """Lanes loop as often as their number says, less 20: a warp as often as the last of its lanes."""
    found = walked("""
	add.s32 	%r2, %r1, -20;
	setp.lt.s32 	%p1, %r2, 1;
	@%p1 bra 	$L__BB0_2;
$L__BB0_1:
	add.s32 	%r2, %r2, -1;
	setp.gt.s32 	%p2, %r2, 0;
	@%p2 bra 	$L__BB0_1;
$L__BB0_2:
	st.global.b32 	[%rd2], %r2;
	ret;
""")  # fmt: skip
    assert found.executed.tolist() == [[1, 1], [11, 43], [1, 1]]
    assert found.written == 2 * 32


def test_threads_that_end_early_are_gone() -> None:
    found = walked("""
	setp.ge.u32 	%p1, %r1, 40;
	@%p1 bra 	$L__BB0_3;
	mov.b32 	%r2, 0;
$L__BB0_1:
	add.s32 	%r2, %r2, 1;
	setp.ne.b32 	%p2, %r2, 5;
	@%p2 bra 	$L__BB0_1;
$L__BB0_3:
	ret;
""", threads=50)  # fmt: skip
    assert found.executed.tolist() == [[1, 1], [1, 1], [5, 5], [1, 1]]
    found = walked("""
	setp.lt.u32 	%p1, %r1, 32;
	@%p1 bra 	$L__BB0_1;
	ret;
$L__BB0_1:
	st.shared.b32 	[fixed], %r1;
	ret;
""")  # fmt: skip
    assert found.executed.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert found.wavefronts.tolist() == [1, 0]


def test_memory_is_told_apart() -> None:
    found = walked("""
	mul.wide.u32 	%rd3, %r1, 16;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.nc.v4.b32 	{%r2, %r3, %r4, %r5}, [%rd4+64];
	ld.global.b32 	%r6, [%rd2];
	mov.b32 	%r7, dynamic;
	shl.b32 	%r8, %r1, 7;
	add.s32 	%r10, %r7, %r8;
	st.shared.v4.b32 	[%r10], {%r2, %r3, %r4, %r5};
	setp.lt.u32 	%p1, %r1, 32;
	// begin inline asm
	{ cp.async.cg.shared.global [%r10], [%rd4], 16; }
	// end inline asm
	@%p1 cp.async.cg.shared.global.L2::128B [%r10+16], [%rd4], 16;
	cp.async.commit_group;
	@%p1 st.global.b32 	[%rd4], %r2;
	ret;
""", sample=(0, 1), blocks=2)  # fmt: skip
    # Rows of 128 bytes: all lanes have the same banks, in four groups of eight.
    assert found.wavefronts.tolist() == [3 * 32, 2 * 32] * 2
    assert found.copied.tolist() == [2, 1, 2, 1]
    assert found.thread_blocks == 2
    assert found.cached == 2 * (64 * 16 + 32)
    assert found.uncached == 2 * (64 + 32) * 16
    assert found.written == 2 * 32 * 16


def test_what_comes_from_memory_is_not_followed() -> None:
    found = walked("""
	ld.global.b32 	%r2, [%rd2];
	setp.eq.s32 	%p1, %r2, 0;
	@%p1 bra 	$L__BB0_1;
	mul.wide.s32 	%rd3, %r2, 4;
	add.s64 	%rd4, %rd2, %rd3;
	ld.global.b32 	%r3, [%rd4];
$L__BB0_1:
	ret;
""")  # fmt: skip
    assert found.executed.tolist() == [[1, 1], [1, 1], [1, 1]]
    assert found.guessed == 2


def test_a_loop_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "MOST_STEPS", 100)
    with pytest.raises(RuntimeError, match="walk: required at most 100 steps through k, got more"):
        walked("$L__BB0_1:\n\tbra.uni 	$L__BB0_1;\n")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("mul.hi.u32 %r2, %r1, -1431655765;", lambda n: n * 0xAAAAAAAB >> 32),
        ("mul.hi.s32 %r2, %r1, -1431655765;", lambda n: n * -1431655765 >> 32),
        ("div.s32 %r2, %r1, -7;", lambda n: -(n // 7)),
        ("rem.s32 %r3, %r1, 7; sub.s32 %r2, 0, %r3;", lambda n: -(n % 7)),
        ("shr.s32 %r2, %r1, 1;", lambda n: n >> 1),
        ("neg.s32 %r3, %r1; shr.u32 %r2, %r3, 28;", lambda n: 15 if n else 0),
        ("neg.s32 %r3, %r1; shr.s32 %r2, %r3, 28;", lambda n: -1 if n else 0),
        ("cvt.u16.u32 %rs1, %r1; mul.lo.s16 %rs2, %rs1, 1171; cvt.u32.u16 %r2, %rs2;", lambda n: n * 1171 & 0xFFFF),
        ("mul.wide.s32 %rd8, %r1, -3; cvt.u32.u64 %r2, %rd8;", lambda n: -3 * n),
        ("setp.gt.s32 %p3, %r1, 5; selp.b32 %r2, 100, -1, %p3;", lambda n: 100 if n > 5 else -1),
        ("mad.lo.s32 %r2, %r1, %r1, 5;", lambda n: n * n + 5),
        ("not.b32 %r3, %r1; and.b32 %r4, %r3, 3; xor.b32 %r2, %r4, 1;", lambda n: (~n & 3) ^ 1),
        ("min.s32 %r3, %r1, 9; max.s32 %r2, %r3, 4;", lambda n: max(min(n, 9), 4)),
        ("add.s32 %r3, %r1, -5; setp.lo.u32 %p3, %r3, 6; selp.u32 %r2, 1, 0, %p3;", lambda n: int(0 <= n - 5 < 6)),
        ("bfe.u32 %r2, %r1, 2, 3;", lambda n: n >> 2 & 7),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_integers(code: str, wanted: object) -> None:
    """A number is told by where it is stored: 32 bytes times it behind the first tensor's middle."""
    from tvm_na.cuda.static.program import TENSOR, Program

    body = f"{code}\n mul.wide.s32 %rd6, %r2, 32; add.s64 %rd7, %rd2, %rd6; st.global.b32 [%rd7], %r1; ret;"
    (function,) = functions_of(HEAD + body + "\n}\n").values()
    seen = []
    made = walks._Walk(Program(function), (32, 1, 1), 1, (0,), 1)
    made._names["access"] = lambda number, addresses, lanes: seen.append(addresses)
    made.run()
    ((*addresses,),) = seen
    assert [(address - TENSOR) // 32 for address in addresses] == [wanted(n) for n in range(32)]  # type: ignore[operator]


def test_blocks_and_parameters_have_their_values() -> None:
    found = walked("""
	mov.u32 	%r2, %ctaid.x;
	mov.u32 	%r3, %nctaid.x;
	mad.lo.s32 	%r4, %r2, %r3, %r9;
$L__BB0_1:
	add.s32 	%r4, %r4, -1;
	setp.ne.s32 	%p1, %r4, 0;
	@%p1 bra 	$L__BB0_1;
	ret;
""", threads=32, sample=(1, 3, 5))  # fmt: skip
    assert found.executed[1].tolist() == [11, 27, 43]
    assert np.all(found.executed[0] == 1)
