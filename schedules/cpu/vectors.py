"""What fits a CPU's vector registers."""

from __future__ import annotations

from tvm_na.schedules.base import largest_divisor
from tvm_na.targets.target import NATarget

#: Multiply-adds that must be under way at once, since each waits for the one before it: two pipes, four cycles.
IN_FLIGHT = 8
#: From so many bytes on TVM takes sums from a pool of memory, not from the stack, and they are in no register.
STACK_BYTES = 1024


#: Cycles that loading a vector costs beside, from the first cache and the second.
NEAR, FAR = 0.2, 1.0
#: Bytes of the first cache.
CACHE_BYTES = 32768
# Bytes of the longest vectors that every CPU with such registers has two units for.
_FULL_RATE_BYTES = 32


def vector_cycles(lanes: int, dtype: str) -> float:
    """What an operation on a vector costs, in operations on one that every CPU with such vectors has two units for.

    Longer ones take twice as long on some CPUs (AMD's Zen 4) and as long on others, with fewer of them at once.
    """
    return 1.5 if lanes * (8 if dtype == "float64" else 4) > _FULL_RATE_BYTES else 1.0


#: Those of a vector that is widened from int8: a shuffle and a conversion, in units that multiply-adds need too.
WIDENED = 0.5


def step_cycles(products: int, numbers: int, vectors: int, load: float = NEAR) -> float:
    """Cycles of a step of a product whose sums stay in registers.

    Two multiply-adds or two loads in each, and what loads cost beside them: of vectors the more, since they come from
    further away.

    Args:
        products: Multiply-adds of vectors, each to a sum of its own.
        numbers: Those loaded to be multiplied with vectors.
        vectors: Those loaded.
        load: What a vector costs beside, ``NEAR``, ``FAR`` or ``WIDENED``.
    """
    return max(products, numbers + vectors, IN_FLIGHT) / 2 + 0.1 * numbers + load * vectors


def vector_length(dtype: str, target: NATarget) -> int:
    """Numbers of float32 or float64 in a vector register."""
    return target.vector_bytes // (8 if dtype == "float64" else 4)


def channel_vector(dim: int, register: int) -> int:
    """Elements of ``dim`` channels in a vector: a register of them, half of one, or what divides them."""
    if dim <= register:
        return dim
    power = largest_divisor(register, dim & -dim)
    return power if power >= register // 2 else largest_divisor(dim, register)
