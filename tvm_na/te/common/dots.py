"""Dot products of pairs of bfloat16 whose sums are float32: one instruction, where a CPU has it.

``total + a[0] * b[0] + a[1] * b[1]``, in as many lanes at once as a vector has; a pair is a number of 32 bits with its
first half in the lower bits, as it lies in memory. TVM vectorises an operator of ours as any other and then calls a
function for each vector, whose definition in LLVM's language the schedule brings along (:func:`definitions`). LLVM puts
it in the place of the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import ir, s_tir, tirx
from tvm.ir.op import register_op_attr
from tvm.tirx.op import register_intrin_lowering

_OPERATOR = "tvm_na.dot"
_FUNCTION = "tvm_na.dot.x{}"

#: LLVM's intrinsic functions by instruction and lanes. Sums are rounded as the instruction says (vdpbf16ps: after each
#: product, to nearest; bfdot: to odd, once), and denormal numbers are zero: all of it within bfloat16's own rounding.
_INTRINSICS = {
    "": {},
    "vdpbf16ps": {n: f"llvm.x86.avx512bf16.dpbf16ps.{32 * n}" for n in (4, 8, 16)},
    "bfdot": {n: f"llvm.aarch64.neon.bfdot.v{n}f32.v{2 * n}bf16" for n in (2, 4)},
}


def pair(lower: Any, upper: Any) -> Any:
    """Two bfloat16, each as its bits in uint16, as one pair. Of two neighbors in memory LLVM makes one load."""
    return lower.astype("uint32") | (upper.astype("uint32") << tirx.const(16, "uint32"))


def dot(a: Any, b: Any) -> Any:
    """The product of two pairs, to be summed up by ``te.sum`` in a function that :func:`accumulating` is called on."""
    return tirx.call_intrin("float32", _OPERATOR, tirx.const(0, "float32"), a, b)


def accumulating(func: Any) -> Any:
    """``func`` with each sum of :func:`dot` as one operation, ``dot(total, a, b)`` for ``total + dot(0, a, b)``.

    Args:
        func: A PrimFunc made from tensor expressions.
    """
    return tirx.PrimFunc(func.params, _accumulating(func.body), func.ret_type, func.attrs)


def _accumulating(stmt: Any) -> Any:
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_accumulating(part) for part in stmt.seq])
    if isinstance(stmt, tirx.For):
        body = _accumulating(stmt.body)
        return tirx.For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, None, stmt.annotations)
    if isinstance(stmt, s_tir.SBlockRealize):
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, _accumulating(stmt.block))
    if isinstance(stmt, s_tir.SBlock):
        about = (stmt.iter_vars, stmt.reads, stmt.writes, stmt.name_hint, _accumulating(stmt.body), stmt.init)
        return s_tir.SBlock(*about, stmt.alloc_buffers, stmt.match_buffers, stmt.annotations)
    if isinstance(stmt, tirx.BufferStore) and isinstance(stmt.value, tirx.Add):
        total, product = stmt.value.a, stmt.value.b
        if isinstance(product, ir.Call) and product.op.same_as(ir.Op.get(_OPERATOR)):
            summed = tirx.call_intrin("float32", _OPERATOR, total, *product.args[1:])
            return tirx.BufferStore(stmt.buffer, summed, stmt.indices)
    return stmt


def definitions(lanes: Iterable[int], instruction: str) -> str:
    """What is called for vectors of so many lanes, in LLVM's language.

    By the instruction (:attr:`tvm_na.targets.target.NATarget.dot`) where it has so many, else by products and sums of
    float32.
    """
    return "\n".join(_definition(n, _INTRINSICS[instruction].get(n)) for n in sorted(set(lanes)))


def _definition(lanes: int, intrinsic: str | None) -> str:
    floats, pairs, halves = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{2 * lanes} x bfloat>"
    shift, mask = "splat (i32 16)", "splat (i32 -65536)"
    if lanes == 1:  # to TVM that is no vector
        floats, pairs, shift, mask = "float", "i32", "16", "-65536"
    name = _FUNCTION.format(lanes)
    head = f"define {floats} @{name}({floats} %total, {pairs} %a, {pairs} %b) alwaysinline nounwind memory(none) {{"
    if intrinsic is not None:
        return f"""
declare {floats} @{intrinsic}({floats}, {halves}, {halves})
{head}
  %c = bitcast {pairs} %a to {halves}
  %d = bitcast {pairs} %b to {halves}
  %sum = call {floats} @{intrinsic}({floats} %total, {halves} %c, {halves} %d)
  ret {floats} %sum
}}"""
    widened = "".join(
        f"""
  %{x}.low = shl {pairs} %{x}, {shift}
  %{x}.high = and {pairs} %{x}, {mask}
  %{x}.0 = bitcast {pairs} %{x}.low to {floats}
  %{x}.1 = bitcast {pairs} %{x}.high to {floats}"""
        for x in "ab"
    )
    return f"""
{head}{widened}
  %first = fmul contract {floats} %a.0, %b.0
  %part = fadd contract {floats} %total, %first
  %second = fmul contract {floats} %a.1, %b.1
  %sum = fadd contract {floats} %part, %second
  ret {floats} %sum
}}"""


def _call(call: Any) -> Any:
    dtype = str(call.ty)
    lanes = int(dtype.partition("x")[2] or 1)
    return tirx.call_pure_extern(dtype, _FUNCTION.format(lanes), *call.args)


register_op_attr(_OPERATOR, "TCallEffectKind", int(tirx.CallEffectKind.Pure.value))
register_op_attr(_OPERATOR, "TVectorizable", True)
register_op_attr(_OPERATOR, "TScriptPrinterName", "dot")
register_intrin_lowering(_OPERATOR, "llvm", f=_call)
