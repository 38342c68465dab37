"""Loops of code, by which block of it leads to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """A natural loop.

    Attributes:
        header: The block that it is entered by.
        body: All blocks of it.
    """

    header: int
    body: frozenset[int]


@dataclass(frozen=True)
class Nest:
    """The loops of a function.

    Attributes:
        loops: In the order of their headers.
        reached: The blocks that there is a way to from the first one.
    """

    loops: tuple[Loop, ...]
    reached: frozenset[int]

    def without(self, left_out: Sequence[int]) -> Nest:
        """The nest without some loops, whose bodies belong to the loops around them."""
        kept = (loop for n, loop in enumerate(self.loops) if n not in left_out)
        return Nest(tuple(kept), self.reached)

    @property
    def shape(self) -> list[int]:
        """Of each loop, the one around it; -1 for none."""
        return [self._innermost(loop.header, loop) for loop in self.loops]

    def region(self, block: int) -> int:
        """The innermost loop around a block; -1 for none."""
        return self._innermost(block, None)

    def _innermost(self, block: int, but: Loop | None) -> int:
        around = [
            (len(loop.body), n)
            for n, loop in enumerate(self.loops)
            if block in loop.body and loop is not but and (but is None or but.body < loop.body)
        ]
        return min(around)[1] if around else -1


def nest_of(following: Sequence[Sequence[int]]) -> Nest:
    """The natural loops of a function, by the blocks that follow each of its blocks; the first one is entered."""
    reached = _reached(following)
    before: dict[int, list[int]] = {block: [] for block in reached}
    for block in reached:
        for after in following[block]:
            before[after].append(block)
    dominators = _dominators(before, len(following))
    bodies: dict[int, set[int]] = {}
    for block in reached:
        for after in following[block]:
            if dominators[block] >> after & 1:  # a way back to what every way here passed
                bodies.setdefault(after, {after}).update(_body(block, after, before))
    loops = tuple(Loop(header, frozenset(bodies[header])) for header in sorted(bodies))
    return Nest(loops, frozenset(reached))


def _reached(following: Sequence[Sequence[int]]) -> list[int]:
    found, todo = {0}, [0]
    while todo:
        for after in following[todo.pop()]:
            if after not in found:
                found.add(after)
                todo.append(after)
    return sorted(found)


def _dominators(before: dict[int, list[int]], count: int) -> dict[int, int]:
    """Of each block those that every way to it passes, as bits."""
    everything = (1 << count) - 1
    found = dict.fromkeys(before, everything)
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for block, ways in before.items():
            if block:
                passed = everything
                for way in ways:
                    passed &= found[way]
                passed |= 1 << block
                changed |= passed != found[block]
                found[block] = passed
    return found


def _body(block: int, header: int, before: dict[int, list[int]]) -> set[int]:
    """What leads to ``block`` without passing the header."""
    found, todo = {header, block}, [block]
    while todo:
        now = todo.pop()
        if now == header:
            continue
        for way in before[now]:
            if way not in found:
                found.add(way)
                todo.append(way)
    return found
