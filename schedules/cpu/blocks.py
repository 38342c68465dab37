"""Blocks of accumulators: how much of a tile's products is kept in registers at a time, and what that takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from tvm_na.schedules.base import divisors
from tvm_na.schedules.cpu.vectors import NEAR, step_cycles

#: The most rows of a window, or queries, in a block: they are unrolled.
MOST_AT_ONCE = 8
# Up to so many times the fewest cycles, what is read again for each block decides: keys for each block of queries,
# weights for each block of vectors of channels. Then few blocks, about as large as each other.
_EQUAL = 1.01


class Block(NamedTuple):
    """A block of accumulators.

    Attributes:
        cycles: Of a step of the reduction, for all blocks of a tile together.
        queries, vectors, rows: Its sizes; the last block may have fewer rows, that of values fewer queries.
    """

    cycles: float
    queries: int
    vectors: int
    rows: int = 1


def _parts(n: int, size: int) -> Iterator[tuple[int, int]]:
    """(how many, how large) of the parts of ``n``."""
    yield n // size, size
    if n % size:
        yield 1, n % size


@functools.lru_cache(maxsize=1024)
def score_block(queries: int, vectors: int, rows: int, registers: int, load: float = NEAR) -> Block:
    """The block expected to be the fastest for products of a tile's queries with the vectors of its box.

    A step is a channel. Each vector of keys meets all queries of a block, whose numbers stay in registers beside it if
    there are more vectors; ``load`` is what a vector of keys costs.
    """
    found = []
    for u in divisors(queries):
        for v in divisors(vectors):
            for a in range(1, min(rows, MOST_AT_ONCE) + 1):
                if a * u * v + (u if a * v > 1 else 1) + 1 <= registers:
                    step = sum(count * step_cycles(part * u * v, u, part * v, load) for count, part in _parts(rows, a))
                    found.append(Block(queries // u * (vectors // v) * step, u, v, a))
    return max(_fast(found), key=lambda block: (block.queries, block.vectors))


@functools.lru_cache(maxsize=1024)
def value_block(queries: int, vectors: int, shared: bool, registers: int) -> Block:
    """The block expected to be the fastest for products of weights with vectors of the channels of values.

    A step is a key. With ``shared`` all queries meet the same one: its vectors stay in registers beside the sums.
    """
    found = []
    for v in divisors(vectors):
        for u in range(1, min(queries, MOST_AT_ONCE) + 1):
            if u * v + (v if shared else 1) + 1 <= registers:
                step = sum(
                    count * step_cycles(part * v, part, v if shared else part * v) for count, part in _parts(queries, u)
                )
                found.append(Block(vectors // v * step, u, v))
    return max(_fast(found), key=lambda block: (block.vectors, -ceil(queries / block.queries), -block.queries))


def _fast(blocks: list[Block]) -> list[Block]:
    """Those that take the fewest cycles, or hardly more."""
    enough = _EQUAL * min(block.cycles for block in blocks)
    return [block for block in blocks if block.cycles <= enough]
