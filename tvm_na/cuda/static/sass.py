"""What the GPU executes, as a disassembler prints it, and how often, by what was met in its PTX.

The loops of both languages stand in the same order, one in the other, but for those of the PTX that the assembler has
written out. What is in a loop, but not in a loop inside, is a region; so is what is in none. A region is executed as
often as the products, copies, loads and the like in it, of which each is one instruction in both languages. Which loops
are written out is told by these too. Where the machine code has loops of its own, it counts as one region.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tvm_na.cuda.static.loops import Nest, nest_of
from tvm_na.cuda.static.memory import Array
from tvm_na.cuda.static.ptx import Function

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
#: What begins the same instruction in both languages, the longer ones first.
_ALIKE = (
    ("mma.", "HMMA"),
    ("ldmatrix", "LDSM"),
    ("cp.async.cg", "LDGSTS"),
    ("cp.async.ca", "LDGSTS"),
    ("ld.global", "LDG"),
    ("st.global", "STG"),
    ("ld.shared", "LDS"),
    ("st.shared", "STS"),
    ("shfl", "SHFL"),
    ("bar.sync", "BAR"),
    ("barrier", "BAR"),
    ("ex2.", "MUFU.EX2"),
)
_MOST_WAYS = 3000


class Line(NamedTuple):
    """An instruction of the machine.

    Attributes:
        at: Where it stands.
        guarded: Whether it depends on a predicate.
        op: With modifiers.
        target: Where it branches to.
    """

    at: int
    guarded: bool
    op: str
    target: int | None


def lines_of(text: str, kernel: str) -> list[Line]:
    """The instructions of one kernel in ``cuobjdump --dump-sass``, without what fills the end."""
    parts = re.split(r"Function : (\w+)", text)
    body = "".join(parts[i + 1] for i in range(1, len(parts), 2) if parts[i] == kernel)
    found = []
    for match in _LINE.finditer(body):
        op = match[3]
        to = re.search(r"0x([0-9a-f]+)\s*$", match[4]) if op.startswith("BRA") else None
        guarded = bool(match[2]) or "," in match[4] and op.startswith("BRA")  # noqa: RUF021
        found.append(Line(int(match[1], 16), guarded, op, int(to[1], 16) if to else None))
    while found and found[-1].op == "NOP":
        found.pop()
    if found and found[-1].target == found[-1].at:  # it branches to itself, forever, if it is ever reached
        found.pop()
    return found


@dataclass(frozen=True)
class Region:
    """A part of the machine code.

    Attributes:
        instructions: How many stand in it.
        times: How often a warp goes through it, on average.
    """

    instructions: int
    times: float


@dataclass(frozen=True)
class _Code:
    """Blocks of code: of each the instructions by kind, and how often it is executed; and the loops of all."""

    kinds: list[Counter[str]]
    times: list[float]
    nest: Nest

    def regions(self, nest: Nest) -> list[dict[str, float]]:
        """What is executed, by kind, in what is in no loop, and in each loop."""
        found: list[dict[str, float]] = [{} for _ in range(len(nest.loops) + 1)]
        for block in nest.reached:
            region = found[nest.region(block) + 1]
            for kind, count in self.kinds[block].items():
                region[kind] = region.get(kind, 0.0) + count * self.times[block]
        return found


def regions_of(lines: Sequence[Line], function: Function, times: Array) -> list[Region]:
    """The regions of a kernel, what is in no loop first; without what is never reached but by divergence.

    Args:
        lines: Its machine code.
        function: Its PTX.
        times: How often a warp goes through each of the PTX's blocks, on average.
    """
    mine, theirs = _machine_code(lines), _ptx_code(function, times)
    nest, met = _matched(mine, theirs)
    return [_region(own, executed) for own, executed in zip(mine.regions(nest), met, strict=True)]


def _matched(mine: _Code, theirs: _Code) -> tuple[Nest, list[dict[str, float]]]:
    """The loops of the machine code that count, and what was executed of the PTX in the same regions."""
    more = len(theirs.nest.loops) - len(mine.nest.loops)
    ways: Iterable[tuple[int, ...]] = ()
    if more >= 0 and math.comb(len(theirs.nest.loops), more) <= _MOST_WAYS:
        ways = itertools.combinations(range(len(theirs.nest.loops)), more)
    alike = [nest for nest in map(theirs.nest.without, ways) if nest.shape == mine.nest.shape]
    if not alike:
        everything = range(len(mine.nest.loops)), range(len(theirs.nest.loops))
        return mine.nest.without(everything[0]), theirs.regions(theirs.nest.without(everything[1]))
    there = mine.regions(mine.nest)
    return mine.nest, min((theirs.regions(nest) for nest in alike), key=lambda met: _difference(there, met))


def _difference(mine: Sequence[dict[str, float]], met: Sequence[dict[str, float]]) -> float:
    """By how many instructions regions differ from what was executed, if each is gone through as often as fits."""
    found = 0.0
    for own, executed in zip(mine, met, strict=True):
        times = _times(own, executed)
        kinds = (own.keys() | executed.keys()) - {""}
        found += sum(abs(own.get(kind, 0.0) * times - executed.get(kind, 0.0)) for kind in kinds)
    return found


def _times(own: dict[str, float], executed: dict[str, float]) -> float:
    alike = (own.keys() & executed.keys()) - {""}
    if not alike:  # there is little in it
        return executed.get("", 0.0) / own[""] if own.get("") else 0.0
    return sum(executed[kind] for kind in alike) / sum(own[kind] for kind in alike)


def _region(own: dict[str, float], executed: dict[str, float]) -> Region:
    return Region(int(sum(own.values())), _times(own, executed))


def _kind(op: str) -> str:
    """What an instruction is in both languages; "" if it may be several in one of them."""
    return next((machine for ptx, machine in _ALIKE if op.startswith((ptx, machine))), "")


def _ptx_code(function: Function, times: Array) -> _Code:
    following = []
    for n, block in enumerate(function.blocks):
        last = block.instructions[-1] if block.instructions else None
        after = {block.target} if block.target is not None else set()
        if last is None or last.guard or last.name not in ("bra", "ret", "exit", "trap"):
            after.add(n + 1)
        following.append([to for to in after if to is not None and to < len(function.blocks)])
    kinds = [Counter(_kind(instruction.op) for instruction in block.instructions) for block in function.blocks]
    return _Code(kinds, [float(often) for often in times], nest_of(following))


def _machine_code(lines: Sequence[Line]) -> _Code:
    """Blocks of the machine code; what only threads of a warp that has parted come to is not reached."""
    starts = {line.target for line in lines if line.target is not None}
    blocks: list[list[Line]] = [[]]
    for line in lines:
        if line.at in starts and blocks[-1]:
            blocks.append([])
        blocks[-1].append(line)
        if line.op.startswith(("BRA", "EXIT", "RET")):
            blocks.append([])
    blocks = [block for block in blocks if block]
    places = {block[0].at: n for n, block in enumerate(blocks)}
    following = []
    for n, block in enumerate(blocks):
        last = block[-1]
        after = {places[last.target]} if last.target in places and not last.op.startswith("BRA.DIV") else set()
        if last.guarded or not last.op.startswith(("BRA", "EXIT", "RET")) or last.op.startswith("BRA.DIV"):
            after.add(n + 1)
        following.append([to for to in after if to < len(blocks)])
    kinds = [Counter(_kind(line.op) for line in block) for block in blocks]
    return _Code(kinds, [1.0] * len(blocks), nest_of(following))
