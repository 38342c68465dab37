"""PTX as basic blocks of instructions: device functions as they are before registers are given out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.\w+\s+(\w+)\[(\d*)\]")
_LABEL = re.compile(r"\s*([$\w]+):(?!:)")
_END = "the end"
_ENDS = ("bra", "ret", "exit", "trap")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        op: With its modifiers, such as ``ld.shared.v4.u32``.
        guard: The predicate that it depends on, "" if none.
        negated: Whether it is executed where the guard does not hold.
        operands: As they are written, vectors ``{%r1, %r2}`` as one.
    """

    op: str
    guard: str
    negated: bool
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The operation without its modifiers."""
        return self.op.partition(".")[0]

    @property
    def type(self) -> str:
        """The last modifier, such as ``u32``."""
        return self.op.rpartition(".")[2]


@dataclass(frozen=True)
class Block:
    """Instructions that are executed one after the other; ``target`` is where its last one branches to, if it does."""

    instructions: tuple[Instruction, ...]
    target: int | None


@dataclass(frozen=True)
class Function:
    """A device function.

    Attributes:
        name: The kernel's.
        parameters: Names in their order, with whether each is a pointer.
        shared: Bytes and alignment of static arrays in shared memory by name; 0 bytes for the one whose size the
            launch says.
        blocks: Of code, in its order; the last one ends the function.
    """

    name: str
    parameters: tuple[tuple[str, bool], ...]
    shared: dict[str, tuple[int, int]]
    blocks: tuple[Block, ...]


def functions_of(text: str) -> dict[str, Function]:
    """The device functions of a PTX module, by name."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    outside = {found[2]: (int(found[3] or 0), int(found[1])) for found in _SHARED.finditer(text)}
    return {found[1]: _function(found, text, outside) for found in _ENTRY.finditer(text)}


def _function(found: re.Match[str], text: str, shared: dict[str, tuple[int, int]]) -> Function:
    parameters = re.findall(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?\.align\s+\d+\s+)?(\w+)", found[2])
    body = text[found.end() : _end_of(text, found.end())]
    used = {name: size for name, size in shared.items() if re.search(rf"\b{name}\b", body)}
    pointers = tuple((name, kind == "u64") for kind, name in parameters)
    return Function(found[1], pointers, used, _blocks(body))


def _end_of(text: str, begin: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.start()
    raise ValueError("ptx: required a function that ends, got one that does not")


def _blocks(body: str) -> tuple[Block, ...]:
    parts: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for text in body.split(";"):
        statement = text.strip()
        while True:  # what scopes and labels stand in front of
            if statement[:1] in ("{", "}"):
                statement = statement[1:].lstrip()
            elif (label := _LABEL.match(statement)) is not None:
                if parts[-1]:
                    parts.append([])
                labels[label[1]] = len(parts) - 1
                statement = statement[label.end() :].lstrip()
            else:
                break
        if not statement or statement.startswith("."):  # declarations
            continue
        instruction = _instruction(statement)
        if instruction.guard and instruction.name in ("ret", "exit"):  # a branch to the end
            instruction = instruction._replace(op="bra", operands=(_END,))
        parts[-1].append(instruction)
        if instruction.name in _ENDS:
            parts.append([])
    if not parts[-1]:
        parts.pop()
    labels[_END] = len(parts)
    return tuple(Block(tuple(part), _target(part, labels)) for part in parts)


def _target(part: list[Instruction], labels: dict[str, int]) -> int | None:
    return labels[part[-1].operands[-1]] if part and part[-1].name == "bra" else None


def _instruction(statement: str) -> Instruction:
    guard = re.match(r"@(!?)(%?\w+)\s+", statement)
    rest = statement[guard.end() :] if guard else statement
    op = re.match(r"[\w.:]+", rest)
    if op is None:
        raise ValueError(f"ptx: required an instruction, got {statement!r}")
    return Instruction(op[0], guard[2] if guard else "", bool(guard and guard[1]), _operands(rest[op.end() :]))


def _operands(text: str) -> tuple[str, ...]:
    found, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and not depth:
            found.append(text[begin:at].strip())
            begin = at + 1
    return tuple(part for part in (*found, text[begin:].strip()) if part)
