"""Kernels that run one ``mma`` or ``ldmatrix``, and where the PTX manual says that their registers' numbers belong.

The manual's names: ``groupID`` is a lane's number divided by 4, ``threadID_in_group`` the remainder. ``a[i]`` and so
on are a lane's numbers, two to a register in formats of 16 bits.
"""

from __future__ import annotations

import numpy as np

#: The numbers that lanes have of A, of 16 rows and so many columns, by ``(element, depth)``.
SHAPES = {("f16", 16): 8, ("bf16", 16): 8, ("f16", 8): 4, ("bf16", 8): 4, ("tf32", 8): 4, ("tf32", 4): 2}


def _registers(name: str, first: int, count: int) -> tuple[str, str]:
    """The braces of an operand, and its inputs."""
    letter, kind = ("f", "float") if name == "c" else ("r", "unsigned")
    inputs = ", ".join(f'"{letter}"((({kind} *)({name} + 0))[{i}])' for i in range(count))
    return "{" + ", ".join(f"%{first + i}" for i in range(count)) + "}", inputs


def mma_source(element: str, depth: int) -> str:
    """``mma_kernel(a, b, c, d)``: arrays of a warp's registers, of 32 bits, as ``[lane, register]``."""
    a_count = SHAPES[element, depth] // (1 if element == "tf32" else 2)
    b_count = a_count // 2
    a, a_inputs = _registers("a", 4, a_count)
    b, b_inputs = _registers("b", 4 + a_count, b_count)
    c, c_inputs = _registers("c", 4 + a_count + b_count, 4)
    outputs = ", ".join(f'"=f"(((float *)(d + 0))[{i}])' for i in range(4))
    loads = "\n".join(
        f"  {kind} {name}[{count}];\n"
        f"  for (int i = 0; i < {count}; ++i) {{ {name}[i] = {name}_of[lane * {count} + i]; }}"
        for kind, name, count in (("unsigned", "a", a_count), ("unsigned", "b", b_count), ("float", "c", 4))
    )
    return f"""
extern "C" __global__ void __launch_bounds__(32) mma_kernel(unsigned* __restrict__ a_of, unsigned* __restrict__ b_of,
                                                            float* __restrict__ c_of, float* __restrict__ d_of) {{
  int lane = ((int)threadIdx.x);
{loads}
  float d[4];
  {{
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k{depth}.row.col.f32.{element}.{element}.f32"
      "{{%0, %1, %2, %3}}, {a}, {b}, {c};\\n"
      : {outputs}
      : {a_inputs}, {b_inputs}, {c_inputs});
  }}
  for (int i = 0; i < 4; ++i) {{ d_of[lane * 4 + i] = d[i]; }}
}}
"""


def place_in_a(element: str, depth: int, lane: int, i: int) -> tuple[int, int]:
    """Row and column of ``a[i]``."""
    group, thread = divmod(lane, 4)
    if element != "tf32":
        row = group if i % 4 < 2 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    return (group + 8 if i in (1, 3) else group), (thread + 4 if i >= 2 else thread)


def place_in_b(element: str, depth: int, lane: int, i: int) -> tuple[int, int]:
    """Row and column of ``b[i]``."""
    group, thread = divmod(lane, 4)
    if element != "tf32":
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    return (thread + 4 if i == 1 else thread), group


def place_in_c(lane: int, i: int) -> tuple[int, int]:
    """Row and column of ``c[i]`` and ``d[i]``."""
    group, thread = divmod(lane, 4)
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def ldmatrix_source(count: int, transposed: bool) -> str:
    """``ldmatrix_kernel(matrices, rows, registers)``.

    ``matrices`` are 256 halves for shared memory, ``rows`` where in them each lane's address is, and ``registers`` the
    result, of 32 bits, as ``[lane, register]``.
    """
    registers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=r"(((unsigned *)(local + 0))[{i}])' for i in range(count))
    return f"""
#include <cuda_fp16.h>
extern "C" __global__ void __launch_bounds__(32) ldmatrix_kernel(half* __restrict__ matrices, int* __restrict__ rows,
                                                                 unsigned* __restrict__ registers) {{
  __shared__ alignas(64) half tile[256];
  alignas(64) half local[8];
  for (int i = 0; i < 8; ++i) {{ tile[i * 32 + ((int)threadIdx.x)] = matrices[i * 32 + ((int)threadIdx.x)]; }}
  __syncthreads();
  {{
    unsigned int addr = __cvta_generic_to_shared(tile + rows[((int)threadIdx.x)]);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16"
      "{{{registers}}}, [%{count}];\\n"
      : {outputs}
      : "r"(addr)
    );
  }}
  for (int i = 0; i < {count}; ++i) {{ registers[((int)threadIdx.x) * {count} + i] = ((unsigned *)local)[i]; }}
}}
"""


def loaded(matrix: np.ndarray, lane: int, transposed: bool) -> tuple[np.generic, np.generic]:
    """The two numbers of an 8 x 8 matrix that ``ldmatrix`` gives to a lane, the lower half of the register first."""
    rows = matrix.T if transposed else matrix
    return rows[lane // 4, 2 * (lane % 4)], rows[lane // 4, 2 * (lane % 4) + 1]
