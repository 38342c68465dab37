"""Device functions of the strip formulation, beside those of ``flash_device.py``: the bias in shared memory.

Through addresses, so that TVM sees no access to shared memory and adds no barrier of its own.
"""

from __future__ import annotations

from typing import Any

_TYPES = {"float16": "half", "bfloat16": "nv_bfloat16"}


def _call(result: str, name: str, parameters: str, body: str, *arguments: Any) -> Any:
    from tvm.backend.cuda.op import cuda_func_call

    source = f"\n__forceinline__ __device__ {result} {name}({parameters}) {{ {body} }}\n"
    return cuda_func_call(
        name, *arguments, source_code=source, return_type={"void": "void", "float": "float32"}[result]
    )


def write_bias(table: Any, index: Any, source: Any, at: Any, there: Any, factor: Any, dtype: str) -> Any:
    """``table[index] = source[at] * factor``, or 0 where nothing is ``there``; both are addresses."""
    kind = _TYPES[dtype]
    parameters = f"void* table, int index, const {kind}* source, int at, bool there, float factor"
    body = "((float*)table)[index] = there ? float(source[at]) * factor : 0.0f;"
    return _call("void", "tvm_na_write_bias", parameters, body, table, index, source, at, there, factor)


def read_bias(table: Any, index: Any) -> Any:
    """The number at an index of the table."""
    return _call(
        "float",
        "tvm_na_read_bias",
        "const void* table, int index",
        "return ((const float*)table)[index];",
        table,
        index,
    )


def load_pair(to: Any, source: Any) -> Any:
    """Two numbers of 16 bits from global memory to registers; both are addresses."""
    body = "*(unsigned int*)to = *(const unsigned int*)source;"
    return _call("void", "tvm_na_load_pair", "void* to, const void* source", body, to, source)
