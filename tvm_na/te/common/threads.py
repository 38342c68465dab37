"""What the threads of a GPU do in blocks that are written by hand: a row of channels shared by a group of threads, the
sums of a group.

A group is ``lanes`` neighboring threads, a power of two up to a warp, along ``threadIdx.x``, which has no others;
groups are counted by ``threadIdx.y``. All of it happens inside of a PrimFunc that TVM's IRBuilder is making.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.base import ITEM_BYTES

_LOAD_BYTES = 16  # of the widest load
_KINDS = {"float32": "float", "float64": "double"}


def registers(name: str, shape: Sequence[int], dtype: str) -> Any:
    """A buffer of each thread; in registers, as long as its indices are constants when loops are unrolled."""
    buffer = T.sblock_alloc_buffer(tuple(shape), dtype, scope="local")
    IRBuilder.name(name, buffer)
    return buffer


def number(name: str, value: Any, dtype: str) -> Any:
    """A register with ``value``: an expression is a tree, which writes a value out wherever it is used."""
    buffer = registers(name, (1,), dtype)
    T.buffer_store(buffer, value, [0])
    return buffer[0]


def integer(name: str, value: Any) -> Any:
    """An integer in a register, or as it is where it is known."""
    return value if isinstance(value, int) else number(name, value, "int32")


@contextmanager
def only_where(condition: Any) -> Iterator[None]:
    """What is done where ``condition`` holds; always, where it is None."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


@dataclass(frozen=True)
class Row:
    """How the channels of a query or key are dealt out to a group: loads of ``width`` channels, in turns.

    Attributes:
        channels: All of them.
        lanes: Threads of the group.
        width: Channels of a load.
    """

    channels: int
    lanes: int
    width: int

    @classmethod
    def of(cls, channels: int, lanes: int, dtype: str) -> Row:
        """With the widest loads of ``dtype`` that divide the channels."""
        return cls(channels, lanes, min(_LOAD_BYTES // ITEM_BYTES[dtype], channels & -channels))

    @property
    def loads(self) -> int:
        """Loads of the whole row."""
        return self.channels // self.width

    @property
    def rounds(self) -> int:
        """Loads of a thread."""
        return -(-self.loads // self.lanes)

    @property
    def shape(self) -> tuple[int, int]:
        """Of a thread's part."""
        return self.rounds, self.width

    def parts(self, lane: Any, body: Callable[[Any, Any], None]) -> None:
        """``body(round, load)`` for the loads of a thread that there are."""
        with T.unroll(0, self.rounds) as r:
            load = r * self.lanes + lane
            with only_where(None if self.loads % self.lanes == 0 else load < self.loads):
                body(r, load)

    def each(self, body: Callable[[Any, Any], None]) -> None:
        """``body(round, element)`` for all of a thread's part, whether there are such channels or not."""
        with T.unroll(0, self.rounds) as r, T.unroll(0, self.width) as v:
            body(r, v)

    def zeros(self, name: str, dtype: str) -> Any:
        """A part with zeros."""
        part = registers(name, self.shape, dtype)
        self.each(lambda r, v: T.buffer_store(part, tirx.const(0, dtype), [r, v]))
        return part

    def read(self, name: str, source: Any, place: Sequence[Any], lane: Any) -> Any:
        """A thread's part of the row ``source[place]``; zero where there is no channel."""
        dtype = str(source.dtype)
        part = registers(name, self.shape, dtype) if self.loads % self.lanes == 0 else self.zeros(name, dtype)

        def load(r: Any, n: Any) -> None:
            with T.vectorized(0, self.width) as v:
                T.buffer_store(part, source[(*place, n * self.width + v)], [r, v])

        self.parts(lane, load)
        return part

    def read_as(self, name: str, source: Any, place: Sequence[Any], lane: Any, dtype: str) -> Any:
        """:meth:`read`, in another dtype."""
        read = self.read(f"{name}_read", source, place, lane)
        part = registers(name, self.shape, dtype)
        self.each(lambda r, v: T.buffer_store(part, read[r, v].astype(dtype), [r, v]))
        return part

    def add(self, part: Any, factor: Any, other: Any, dtype: str) -> None:
        """Add ``factor`` times another part."""
        self.each(lambda r, v: T.buffer_store(part, part[r, v] + factor * other[r, v].astype(dtype), [r, v]))

    def write(self, name: str, target: Any, place: Sequence[Any], lane: Any, value: Callable[[Any, Any], Any]) -> None:
        """Write ``value(round, element)`` to the row ``target[place]``."""
        dtype = str(target.dtype)
        part = registers(name, self.shape, dtype)
        self.each(lambda r, v: T.buffer_store(part, value(r, v).astype(dtype), [r, v]))

        def save(r: Any, n: Any) -> None:
            with T.vectorized(0, self.width) as v:
                T.buffer_store(target, part[r, v], [*place, n * self.width + v])

        self.parts(lane, save)

    def dot(self, name: str, one: Any, other: Any, dtype: str) -> Any:
        """The product of two rows, which each thread of the group has: part by part, then over the group."""
        total = registers(name, (1,), dtype)
        T.buffer_store(total, tirx.const(0, dtype), [0])

        def multiply(r: Any, v: Any) -> None:
            T.buffer_store(total, total[0] + one[r, v].astype(dtype) * other[r, v].astype(dtype), [0])

        self.each(multiply)
        T.buffer_store(total, group_sum(total[0], self.lanes, dtype), [0])
        return total[0]


def add_shared(target: Any, index: Any, value: Any) -> None:
    """Add to an element of shared memory that no other thread uses before the next barrier.

    TVM would see what the next turn of a loop reads, and put a barrier into it, which not all threads come to.
    """
    from tvm.backend.cuda.op import cuda_func_call

    kind = _KINDS[str(target.dtype)]
    name = f"tvm_na_add_{kind}"
    source = f"\n__forceinline__ __device__ void {name}({kind}* at, {kind} value) {{ *at += value; }}\n"
    T.evaluate(cuda_func_call(name, tirx.address_of(target[index]), value, source_code=source))


def dealt_out(count: int, threads: int, thread: Any, body: Callable[[Any], None]) -> None:
    """``body(n)`` for ``count`` numbers, which a block's threads take in turns."""
    with T.serial(0, -(-count // threads)) as turn:
        n = turn * threads + thread
        with only_where(n < count if count % threads else None):
            body(n)


def barrier() -> None:
    """All threads of a block wait for each other."""
    from tvm.tirx.op import tvm_storage_sync

    T.evaluate(tvm_storage_sync("shared"))


def group_sum(value: Any, lanes: int, dtype: str) -> Any:
    """The sum over the threads of a group; the same bits for each of them, always in the same order.

    The mask names the threads of the group alone: those of another may be elsewhere in the code.
    """
    if lanes == 1:
        return value
    from tvm.backend.cuda.op import cuda_func_call

    kind = _KINDS[dtype]
    name = f"tvm_na_sum_of_{lanes}_{kind}"
    threads = f"{(1 << lanes) - 1:#x}u"
    mask = threads if lanes == 32 else f"{threads} << ((threadIdx.y * {lanes}) & 31)"
    source = (
        f"\n__forceinline__ __device__ {kind} {name}({kind} value) {{\n"
        f"  const unsigned mask = {mask};\n"
        f"  #pragma unroll\n"
        f"  for (int step = {lanes // 2}; step > 0; step >>= 1) value += __shfl_xor_sync(mask, value, step, {lanes});\n"
        f"  return value;\n}}\n"
    )
    return cuda_func_call(name, value, source_code=source, return_type=dtype)
