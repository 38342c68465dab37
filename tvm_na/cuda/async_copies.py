"""Copies from global to shared memory that nothing waits for until all are under way (``cp.async``).

A thread that copies through its registers waits for what it loads before it stores it; where there is a branch around a
copy, it does so before the next copy begins. ``cp.async`` takes no registers and waits for nothing. TVM makes it of the
copies in a pipelined loop (InjectSoftwarePipeline); this makes it of those that come before a computation, in the same
notation: copies in ``async_scope``, what needs them in ``async_wait_queue_scope``, where TVM puts a wait and a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_PIPELINED = "software_pipeline_stage"
_QUEUE = 0


def asynchronous(func: Any) -> Any:
    """The scheduled PrimFunc ``func`` with its copies to shared memory made asynchronous (imports TVM).

    A copy is a nest of loops around a vectorized one that stores what it loads from global memory. Of statements in a
    row, those behind the last copy wait for all of them, but for such as only fill shared memory. A function with a
    pipelined loop stays as it is: there TVM does this.
    """
    if any(type(stmt).__name__ == "For" and _PIPELINED in stmt.annotations for stmt in _within(func.body)):
        return func
    return func.with_body(_in_sequences(func.body))


def _children(stmt: Any) -> list[Any]:
    """What a statement consists of, of the kinds that scheduled functions have."""
    kind = type(stmt).__name__
    if kind == "SeqStmt":
        return list(stmt.seq)
    if kind == "SBlockRealize":
        return [stmt.block.body]
    return [stmt.body] if kind in ("For", "AttrStmt") else []


def _within(stmt: Any) -> Iterator[Any]:
    yield stmt
    for child in _children(stmt):
        yield from _within(child)


def _rebuilt(stmt: Any, change: Callable[[Any], Any]) -> Any:
    """A statement with its parts changed."""
    from tvm import s_tir, tirx

    kind = type(stmt).__name__
    if kind == "SeqStmt":
        return tirx.SeqStmt([change(part) for part in stmt.seq])
    if kind == "SBlockRealize":
        b = stmt.block
        kept = (b.init, b.alloc_buffers, b.match_buffers, b.annotations)
        block = s_tir.SBlock(b.iter_vars, b.reads, b.writes, b.name_hint, change(b.body), *kept)
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, block)
    if kind == "For":
        about = (stmt.thread_binding, stmt.annotations)
        return tirx.For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, change(stmt.body), *about)
    if kind == "AttrStmt":
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, change(stmt.body))
    return stmt


def _in_sequences(stmt: Any) -> Any:
    """A statement with the copies in all of its sequences asynchronous."""
    from tvm import tirx
    from tvm.script import tirx as T

    parts = _children(stmt)
    copies = [n for n, part in enumerate(parts) if _is_copy(part)] if type(stmt).__name__ == "SeqStmt" else []
    if not copies:
        return _rebuilt(stmt, _in_sequences)
    first = copies[-1] + 1
    while first < len(parts) and _fills_shared(parts[first]):
        first += 1
    begun = [_begun(part) if n in copies else _in_sequences(part) for n, part in enumerate(parts[:first])]
    # Not in a scope of TVM's for that: in its loops a pass for other hardware looks for copies that it knows.
    begun.insert(copies[-1] + 1, tirx.Evaluate(T.ptx.cp.async_.commit_group()))
    rest = [_in_sequences(part) for part in parts[first:]]
    waiting = _scoped("async_wait_inflight_count", 0, rest[0] if len(rest) == 1 else tirx.SeqStmt(rest))
    return tirx.SeqStmt([*begun, _scoped("async_wait_queue_scope", _QUEUE, waiting)])


def _begun(copy: Any) -> Any:
    """A copy whose innermost loop is begun, and not waited for."""
    return _scoped("async_scope", 1, copy) if _is_vector(copy) else _rebuilt(copy, _begun)


def _scoped(key: str, value: int, body: Any) -> Any:
    from tvm import tirx

    return tirx.AttrStmt(tirx.const(0, "int32"), key, tirx.const(value, "int32"), body)


def _is_vector(stmt: Any) -> bool:
    from tvm import tirx

    return bool(type(stmt).__name__ == "For" and stmt.kind == tirx.ForKind.VECTORIZED)


def _is_copy(stmt: Any) -> bool:
    stores = [found for found in _within(stmt) if type(found).__name__ == "BufferStore"]
    if len(stores) != 1 or not _fills_shared(stmt) or not any(map(_is_vector, _within(stmt))):
        return False
    value = stores[0].value
    return bool(type(value).__name__ == "TensorLoad" and value.source.scope() == "global")


def _fills_shared(stmt: Any) -> bool:
    """Whether a statement does nothing but store, to shared memory among others, and reads nothing from there."""
    stores: list[Any] = []
    for found in _within(stmt):
        kind = type(found).__name__
        if kind == "SBlockRealize" and any(_is_shared(region.source) for region in found.block.reads):
            return False
        if not _children(found):
            stores.append(found)
    only_stores = all(type(found).__name__ == "BufferStore" for found in stores)
    return only_stores and any(_is_shared(found.buffer) for found in stores)


def _is_shared(buffer: Any) -> bool:
    return str(buffer.scope()).startswith("shared")
