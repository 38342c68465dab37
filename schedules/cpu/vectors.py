"""What fits a CPU's vector registers."""

from __future__ import annotations

from tvm_na.schedules.base import largest_divisor
from tvm_na.targets.target import NATarget

#: Multiply-adds that must be under way at once, since each waits for the one before it: two pipes, four cycles.
IN_FLIGHT = 8
#: From so many bytes on TVM takes sums from a pool of memory, not from the stack, and they are in no register.
STACK_BYTES = 1024


def vector_length(dtype: str, target: NATarget) -> int:
    """Numbers of float32 or float64 in a vector register."""
    return target.vector_bytes // (8 if dtype == "float64" else 4)


def channel_vector(dim: int, register: int) -> int:
    """Elements of ``dim`` channels in a vector: a register of them, half of one, or what divides them."""
    if dim <= register:
        return dim
    power = largest_divisor(register, dim & -dim)
    return power if power >= register // 2 else largest_divisor(dim, register)
