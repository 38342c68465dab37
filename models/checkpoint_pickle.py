"""Pickles that would end the process that reads them: found by their instructions, before any is followed."""

from __future__ import annotations

import pickletools
from typing import IO, Any

#: Tuples in a tuple, each as often as it is in it (4 in a tensor's arguments): its hash takes stack and time for each.
_MOST = 10_000

_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


def check_pickle(stream: IO[bytes]) -> None:
    """Read one pickle of a stream, without making anything of it.

    Raises:
        ValueError: it is none, or has so many tuples in a tuple that its hash may end the process, or never end.
        IndexError, KeyError: its instructions take what is not there.
    """
    stack: list[int] = []  # of each value how many tuples are in it
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES or name == "TUPLE":
            start = marks.pop() if name == "TUPLE" else len(stack) - _TUPLES[name]
            count = 1 + sum(stack[start:])
            if count > _MOST:
                raise ValueError(f"a pickle with more than {_MOST} tuples in one")
            stack[start:] = [count]
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        else:
            _follow(code, stack, marks)


def _follow(code: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> None:
    """What an instruction takes and gives, none of it a tuple."""
    taken = code.stack_before
    if pickletools.markobject in taken:
        del stack[marks.pop() :]
        taken = taken[: taken.index(pickletools.markobject)]
    if taken:
        del stack[-len(taken) :]
    stack.extend([0] * len(code.stack_after))
