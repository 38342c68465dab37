"""A walk through a device function, with all threads of some blocks at once, and what it meets.

Threads go on in turns: always those that stand at the first block of code do what is in it, and then branch. So loops
come to their ends, and threads that part at a branch meet again behind it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_na.cuda.static import integers
from tvm_na.cuda.static.memory import SECTOR, Array, sectors, wavefronts
from tvm_na.cuda.static.program import TENSOR, Program
from tvm_na.cuda.static.ptx import Function

_WARP = 32
#: Blocks of code that a walk goes through before it is given up: some seconds.
MOST_STEPS = 500_000
_FEW, _BLOCK_SHIFT = 1 << 21, 44


@dataclass(frozen=True)
class Walked:
    """What the warps of some thread blocks met.

    Attributes:
        executed: How often a warp went through each block of code, [blocks of code, warps].
        wavefronts: Cycles of shared memory, [warps].
        copied: Asynchronous copies, of warps, [warps].
        cached: Bytes that come through the first cache, each sector counted once for a thread block; of all of them.
        uncached: Bytes that asynchronous copies bring by the first cache, from the second one.
        written: Bytes that go to the second cache.
        local: Accesses to the memory of threads themselves, of warps.
        thread_blocks: How many there were.
        guessed: Branches and addresses that depend on what tensors hold.
    """

    executed: Array
    wavefronts: Array
    copied: Array
    cached: int
    uncached: int
    written: int
    local: int
    thread_blocks: int
    guessed: int


@dataclass
class _Memory:
    """Accesses as they come."""

    program: Program
    lanes: Array
    wavefronts: Array
    copied: Array
    blocks: Array
    bytes: Counter[str] = field(default_factory=Counter)
    guessed: set[int] = field(default_factory=set)
    seen: list[Array] = field(default_factory=list)
    seen_count: int = 0
    known: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, number: int, addresses: Array | None, lanes: Array | None) -> None:
        access = self.program.accesses[number]
        active = self.lanes if lanes is None else np.broadcast_to(lanes, self.lanes.shape) & self.lanes
        if addresses is None:
            self.guessed.add(number)
            addresses = np.arange(self.lanes.size) * access.width + (TENSOR if access.space == "global" else 0)
        addresses = np.broadcast_to(addresses, self.lanes.shape)
        space = access.space or ("global" if addresses.max() >= TENSOR else "shared")
        if space == "local":
            self.bytes["local"] += int(active.reshape(-1, _WARP).any(1).sum())
        elif space == "shared":
            self._shared(number, access.kind, access.width, addresses, active)
        elif access.kind == "load":
            self._cached(access.width, addresses, active)
        else:
            kind = "uncached" if access.kind == "source" else "written"
            self.bytes[kind] += SECTOR * self._remembered(number, sectors, access.width, addresses, active)

    def _shared(self, number: int, kind: str, width: int, addresses: Array, active: Array) -> None:
        self.wavefronts += self._remembered(number, wavefronts, width, addresses, active)
        if kind == "copy":
            self.copied += active.reshape(-1, _WARP).any(1)

    def _remembered(self, number: int, count: Any, width: int, addresses: Array, active: Array) -> Any:
        """What was found before of addresses that lie to each other, and to a sector's begin, as these do."""
        first = addresses[0]
        key = (number, int(first) % SECTOR, (addresses - first).tobytes(), active.tobytes())
        if key not in self.known:
            found = count(addresses.reshape(-1, _WARP), width, active.reshape(-1, _WARP))
            self.known[key] = len(found) if count is sectors else found
        return self.known[key]

    def _cached(self, width: int, addresses: Array, active: Array) -> None:
        for at in range(0, width, SECTOR):
            self.seen.append((self.blocks + (addresses + at) // SECTOR)[active])
            self.seen_count += len(self.seen[-1])
        if self.seen_count > _FEW:
            self.seen = [np.unique(np.concatenate(self.seen))]
            self.seen_count = 0

    def cached(self) -> int:
        return SECTOR * len(np.unique(np.concatenate(self.seen))) if self.seen else 0


def walk(function: Function, threads: tuple[int, int, int], grid: int, sample: Sequence[int], numbers: int) -> Walked:
    """Go through a function with the thread blocks ``sample``.

    Args:
        function: What they execute.
        threads: Of a block, along x, y and z.
        grid: How many blocks there are, along x.
        sample: Of them, which.
        numbers: The value of each parameter that is no pointer: the batch.

    Raises:
        RuntimeError: it does not end within :data:`MOST_STEPS`.
    """
    return _Walk(Program(function), threads, grid, sample, numbers).run()


class _Walk:
    def __init__(
        self, program: Program, threads: tuple[int, int, int], grid: int, sample: Sequence[int], numbers: int
    ) -> None:
        count = int(np.prod(threads))
        padded = -(-count // _WARP) * _WARP
        thread = np.tile(np.arange(padded), len(sample))
        block = np.repeat(np.asarray(sample, np.int64), padded)
        self._program, self._there = program, thread < count
        warps = len(thread) // _WARP
        x, y, _ = threads
        self._special = {
            "tid.x": thread % x, "tid.y": thread // x % y, "tid.z": thread // (x * y), "ctaid.x": block,
            "laneid": thread % _WARP,
        }  # fmt: skip
        zero = np.zeros(len(thread), np.int64)
        sizes = {"ntid.x": x, "ntid.y": y, "ntid.z": threads[2], "nctaid.x": grid, "nctaid.y": 1, "nctaid.z": 1}
        self._special |= {name: zero + size for name, size in sizes.items()}
        self._special |= {"ctaid.y": zero, "ctaid.z": zero}
        self._registers = [zero] * program.count
        for number in program.predicates:
            self._registers[number] = zero.astype(bool)
        pointers = enumerate(program.function.parameters)
        self._parameters = [zero + ((n + 1) * TENSOR if pointer else numbers) for n, (_, pointer) in pointers]
        index = np.repeat(np.arange(len(sample), dtype=np.int64), padded) << _BLOCK_SHIFT
        self._memory = _Memory(program, self._there, np.zeros(warps, np.int64), np.zeros(warps, np.int64), index)
        self._executed = np.zeros((len(program.function.blocks), warps), np.int64)
        self._sample = len(sample)
        constant = functools.cache(lambda value: zero + value)
        self._names: dict[str, Any] = {
            "R": self._registers, "special": self._special, "parameters": self._parameters, "np": np,
            "access": self._memory, "constant": constant, "divided": integers.divided, "high": integers.high,
        }  # fmt: skip

    def run(self) -> Walked:
        """See :func:`walk`."""
        end = len(self._program.function.blocks)
        places = np.where(self._there, 0, end)  # where each thread stands
        all_at: int | None = 0  # where all that are there stand, None if they do not stand at one
        for _ in range(MOST_STEPS):
            at = int(places.min()) if all_at is None else all_at
            if at >= end:
                return self._walked()
            lanes = None if all_at is not None else places == at
            taken = self._step(at, lanes)
            target = self._program.function.blocks[at].target
            ends = self._ends(at)
            following = end if ends else at + 1
            if all_at is not None and isinstance(taken, bool):
                all_at = target if taken else following
                continue
            who = self._there if lanes is None else lanes
            goes = who & taken if target is not None else who & False
            places = np.where(self._there, all_at, end) if all_at is not None else places
            places = np.where(goes, target if target is not None else 0, np.where(who, following, places))
            standing = places[self._there]
            all_at = int(standing[0]) if (standing == standing[0]).all() else None
        raise RuntimeError(f"walk: required at most {MOST_STEPS} steps through {self._program.function.name}, got more")

    def _ends(self, at: int) -> bool:
        """Whether threads end with a block of code."""
        instructions = self._program.function.blocks[at].instructions
        return bool(instructions) and instructions[-1].name in ("ret", "exit", "trap")

    def _step(self, at: int, lanes: Array | None) -> Any:
        """Do what is in a block of code; who branches: a bool where it is all or nobody, else by thread."""
        who = self._there if lanes is None else lanes
        self._executed[at] += 1 if lanes is None else who.reshape(-1, _WARP).any(1)
        code = self._program.code(at, lanes is not None)
        self._names["taken"], self._names["m"] = False, lanes
        if code is not None:
            exec(code, self._names)
        taken = self._names["taken"]
        if isinstance(taken, bool):
            return taken
        some = taken[who]
        return bool(some[0]) if (some == some[0]).all() else taken

    def _walked(self) -> Walked:
        memory = self._memory
        guessed = self._program.unknown + len(memory.guessed)
        found = memory.bytes
        return Walked(
            self._executed,
            memory.wavefronts,
            memory.copied,
            memory.cached(),
            found["uncached"],
            found["written"],
            found["local"],
            self._sample,
            guessed,
        )
