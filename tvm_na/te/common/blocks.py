"""Stages of a computation as TIR blocks, for what no tensor expression says: stages that live within one tile of many,
and sums over tiles that overlap.

All of it happens inside of a PrimFunc that TVM's IRBuilder is making.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


@contextmanager
def loops(extents: Sequence[Any]) -> Iterator[list[Any]]:
    """Nested loops; yields their variables."""
    with T.grid(*extents) as variables:
        yield [variables] if len(extents) == 1 else list(variables)


def local(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """A buffer of the block that is being made."""
    buffer = T.sblock_alloc_buffer(tuple(shape), dtype)
    IRBuilder.name(name, buffer)
    return buffer


def argument(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """A parameter of the function that is being made."""
    return T.arg(name, T.buffer(tuple(shape), dtype))


def whole(buffer: Any) -> tuple[Any, ...]:
    """The index of all of a buffer."""
    return tuple(slice(0, extent) for extent in buffer.shape)


def store(
    name: str,
    target: Any,
    extents: Sequence[Any],
    value: Callable[..., Any],
    place: Callable[..., Sequence[Any]] = lambda *index: index,
    where: Callable[..., Any] | None = None,
) -> None:
    """A block that writes ``value(*index)`` to ``target[place(*index)]`` for every index, where ``where(*index)``."""
    with loops(extents) as variables, T.sblock(name):
        index = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
        if where is not None:
            T.where(where(*variables))
        T.buffer_store(target, value(*index), list(place(*index)))


def stage(name: str, extents: Sequence[Any], dtype: str, value: Callable[..., Any]) -> Any:
    """A buffer of the block that is being made, each element of which is ``value(*index)``."""
    buffer = local(name, extents, dtype)
    store(name, buffer, extents, value)
    return buffer


def reduction(
    name: str,
    extents: Sequence[Any],
    reduced: Sequence[Any],
    dtype: str,
    value: Callable[..., Any],
    combine: Callable[[Any, Any], Any],
    first: float,
) -> Any:
    """A buffer of the block that is being made: ``value(*index, *reduced)`` combined over the reduced axes, beginning
    with ``first``."""
    buffer = local(name, extents, dtype)
    with loops([*extents, *reduced]) as variables, T.sblock(name):
        index = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=False)]
        over = [T.axis.reduce(n, v) for n, v in zip(reduced, variables[len(extents) :], strict=True)]
        with T.init():
            T.buffer_store(buffer, tirx.const(first, dtype), index)
        T.buffer_store(buffer, combine(buffer[tuple(index)], value(*index, *over)), index)
    return buffer


def sums(name: str, extents: Sequence[Any], reduced: Sequence[Any], dtype: str, value: Callable[..., Any]) -> Any:
    """A buffer of the block that is being made with the sums of ``value(*index, *reduced)``."""
    return reduction(name, extents, reduced, dtype, value, operator.add, 0)


def halved(values: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """All values, a power of two of them, combined as a tree."""
    while len(values) > 1:
        half = len(values) // 2
        values = [combine(one, other) for one, other in zip(values[:half], values[half:], strict=True)]
    return values[0]


def accumulate(
    name: str,
    target: Any,
    extents: Sequence[Any],
    value: Callable[..., Any],
    place: Callable[..., Sequence[Any]],
    sources: Callable[..., Sequence[Any]],
) -> None:
    """A block that replaces ``old = target[place(*index)]`` by ``value(old, *index)``; no two indices have one place.

    ``sources(*index)`` are the regions that it reads, ``target`` not among them: to TVM a block that reads what it
    writes is no complete one, and no loop around it could be scheduled.
    """
    with loops(extents) as variables, T.sblock(name):
        index = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
        at = list(place(*index))
        T.reads(*sources(*index))
        T.writes(target[tuple(at)])
        T.buffer_store(target, value(target[tuple(at)], *index), at)
