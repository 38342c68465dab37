"""Device functions that the flash formulation calls: what TVM has no expression for, or would put a barrier around.

TVM sees no access to shared memory in them, and so adds no barrier of its own: a warp passes over steps that none of
its queries sees.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

_TYPES = {"float16": "half", "bfloat16": "nv_bfloat16"}
_WORDS = {16: "uint4", 8: "uint2", 4: "int"}
_ALL = "0xffffffffu"


def call(result: str, name: str, parameters: str, body: str, *arguments: Any) -> Any:
    """A call of a device function with this name, these parameters and this body."""
    from tvm.backend.cuda.op import cuda_func_call

    kind = {"void": "void", "float": "float32", "int": "int32"}[result]
    source = f"\n__forceinline__ __device__ {result} {name}({parameters}) {{ {body} }}\n"
    return cuda_func_call(name, *arguments, source_code=source, return_type=kind)


def copy(to: Any, source: Any, size: int) -> Any:
    """Begin a copy of ``size`` bytes (4, 8 or 16) from global to shared memory; both are addresses."""
    kind = "cg" if size == 16 else "ca"
    body = (
        "unsigned int at = __cvta_generic_to_shared(to); "
        f'asm volatile("cp.async.{kind}.shared.global [%0], [%1], %2;" :: "r"(at), "l"(from), "n"({size}));'
    )
    return call("void", f"tvm_na_copy_{size}", "void* to, const void* from", body, to, source)


def commit() -> Any:
    """Make a group of the copies that were begun."""
    return call("void", "tvm_na_commit", "", 'asm volatile("cp.async.commit_group;" ::);')


def wait(groups: int) -> Any:
    """Wait until at most so many groups of copies are under way: those that were begun last."""
    body = f'asm volatile("cp.async.wait_group {groups};" ::: "memory");'
    return call("void", f"tvm_na_wait_{groups}", "", body)


def clear(at: Any, size: int) -> Any:
    """Zeros at an address: 4, 8 or 16 bytes."""
    word = _WORDS[size]
    return call("void", f"tvm_na_clear_{size}", "void* at", f"*({word}*)at = {word}{{}};", at)


def multiply(at: Any, count: int, factor: Any, dtype: str) -> Any:
    """Multiply so many numbers at an address."""
    kind = _TYPES[dtype]
    each = f"for (int i = 0; i < {count}; ++i) x[i] = {kind}(float(x[i]) * factor);"
    body = f"{kind}* x = ({kind}*)at;\n#pragma unroll 1\n{each}\n"
    return call("void", f"tvm_na_multiply_{count}", "void* at, float factor", body, at, factor)


def read(table: Any, index: Any, dtype: str) -> Any:
    """The number at an index behind an address, as float32."""
    return call(
        "float", "tvm_na_read", f"const {_TYPES[dtype]}* table, int index", "return float(table[index]);", table, index
    )


def across(value: Any, step: int) -> Any:
    """The value of the lane whose number differs by ``step`` in one bit."""
    body = f"return __shfl_xor_sync({_ALL}, x, {step}, 32);"
    return call("float", f"tvm_na_across_{step}", "float x", body, value)


def any_lane(condition: Any) -> Any:
    """Whether a condition holds in any lane of a warp."""
    found = call("int", "tvm_na_any", "int x", f"return __any_sync({_ALL}, x);", tirx.Cast("int32", condition))
    return found != 0


def inverse(value: Any) -> Any:
    """1 / value, as exact as weights in 16 bits: a division that rounds takes ten instructions and a call."""
    return tirx.call_pure_extern("float32", "__fdividef", tirx.const(1.0, "float32"), value)
