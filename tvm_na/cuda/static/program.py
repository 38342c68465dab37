"""A device function of PTX as Python: what its branches and addresses depend on, and nothing else of it.

Numbers that come from tensors, and all with a point, are not computed. Where a branch depends on one (there are few,
such as a score that may be infinite), it is not taken.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType

from tvm_na.cuda.static import integers
from tvm_na.cuda.static.ptx import Function, Instruction

_NAME = re.compile(r"%[\w.]+|(?<![\w.])[A-Za-z_$][\w$]*")
_ADDRESS = re.compile(r"\[\s*([%\w$.]+?)\s*(?:\+\s*(-?\w+))?\s*\]")
_NUMBER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?$")
_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$|%(laneid)$")
#: Bytes between the tensors of a call.
TENSOR = 1 << 40
_WITHOUT_RESULT = (
    "st",
    "red",
    "bra",
    "bar",
    "barrier",
    "ret",
    "exit",
    "trap",
    "cp",
    "call",
    "stmatrix",
    "membar",
    "fence",
)
_OF_MEMORY = ("ld", "st", "red", "atom", "ldmatrix", "stmatrix", "cp", "ldu")


@dataclass(frozen=True)
class Access:
    """An instruction that reads or writes memory.

    Attributes:
        op: The instruction.
        kind: ``load`` or ``store``, of the space ``shared``, ``global`` or ``local``; ``copy`` for an asynchronous one
            from global to shared memory.
        space: See ``kind``; "" where only the address tells.
        width: Bytes of a lane.
    """

    op: str
    kind: str
    space: str
    width: int


def access_of(instruction: Instruction) -> Access | None:
    """What an instruction does to memory; None for such as does nothing, or reads parameters and constants."""
    parts, name = instruction.op.split("."), instruction.name
    if name not in _OF_MEMORY or (name == "cp" and len(instruction.operands) < 3):
        return None
    if name == "cp":
        return Access(instruction.op, "copy", "shared", int(instruction.operands[2], 0))
    if "matrix" in name:  # each lane of a matrix has the address of 16 bytes
        return Access(instruction.op, "load" if name == "ldmatrix" else "store", "shared", 16)
    spaces = [part.partition("::")[0] for part in parts if part.partition("::")[0] in ("shared", "global", "local")]
    if not spaces and ("param" in parts or "const" in parts):
        return None
    count = next((int(part[1:]) for part in parts if re.fullmatch(r"v[248]", part)), 1)
    width = count * max(8, integers.bits_of(parts[-1])) // 8
    return Access(instruction.op, "load" if name in ("ld", "ldu") else "store", spaces[0] if spaces else "", width)


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in _NAME.findall(text)}


def results_of(instruction: Instruction) -> set[str]:
    """The registers that an instruction writes."""
    if instruction.name in _WITHOUT_RESULT or not instruction.operands:
        return set()
    return _names(instruction.operands[:1])


def _operands_of(instruction: Instruction) -> set[str]:
    given = instruction.operands if instruction.name in _WITHOUT_RESULT else instruction.operands[1:]
    return _names(given) | ({instruction.guard} if instruction.guard else set())


class Program:
    """A function, ready to be walked through.

    Attributes:
        function: What it was made of.
        count: How many registers it has.
        predicates: Which of them hold conditions.
        accesses: The accesses to memory, that the code refers to by number.
        unknown: How many branches depend on what is not known.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self._instructions = [i for block in function.blocks for i in block.instructions]
        self._unknown = self._unknown_names()
        self._wanted = self._wanted_names()
        names = sorted(set().union(*map(results_of, self._instructions), *map(_operands_of, self._instructions)))
        self._registers = {name: number for number, name in enumerate(names)}
        self.count = len(names)
        conditions = {i.guard for i in self._instructions if i.guard}
        conditions |= set().union(*(results_of(i) for i in self._instructions if i.name == "setp" or i.type == "pred"))
        self.predicates = [self._registers[name] for name in sorted(conditions)]
        self.accesses: list[Access] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self.unknown = sum(i.name == "bra" and i.guard in self._unknown for i in self._instructions)
        self._shared, self.static_shared = self._places()

    def _places(self) -> tuple[dict[str, int], int]:
        """Where arrays of shared memory lie, the one whose size the launch says last; and how many bytes the others
        have."""
        places, at = {}, 0
        for name, (size, alignment) in sorted(self.function.shared.items(), key=lambda one: not one[1][0]):
            at = -(-at // alignment) * alignment
            places[name] = at
            at += size
        return places, at

    def _unknown_names(self) -> set[str]:
        """Registers whose values are not computed: what comes from memory, and what depends on it."""
        unknown: set[str] = set()
        while True:
            before = len(unknown)
            for instruction in self._instructions:
                results = results_of(instruction)
                if results and not results <= unknown and self._is_unknown(instruction, unknown):
                    unknown |= results
            if len(unknown) == before:
                return unknown

    def _is_unknown(self, instruction: Instruction, unknown: set[str]) -> bool:
        if instruction.name == "ld" and "param" in instruction.op.split("."):
            return self._parameter(instruction.operands[1]) is None
        if _operands_of(instruction) & unknown or access_of(instruction) is not None:
            return True
        known = all(_NUMBER.match(text) or _NAME.fullmatch(text) for text in instruction.operands)
        return not known or integers.expression(instruction, lambda text: "0") is None

    def _wanted_names(self) -> set[str]:
        """Registers that branches, conditions and addresses depend on."""
        wanted: set[str] = set()
        for instruction in self._instructions:
            if instruction.name == "bra" or access_of(instruction) is not None:
                wanted |= {instruction.guard} if instruction.guard else set()
                wanted |= _names(text for text in instruction.operands if text.startswith("["))
        while True:
            before = len(wanted)
            for instruction in self._instructions:
                if results_of(instruction) & wanted and not results_of(instruction) <= self._unknown:
                    wanted |= _operands_of(instruction)
            if len(wanted) == before:
                return wanted

    @functools.cache  # noqa: B019  one program is small, and walked through once or twice
    def code(self, number: int, masked: bool) -> CodeType | None:
        """What a block does to the registers ``R``, of the lanes ``m`` if it is masked; None if nothing.

        It calls ``access(number of the access, addresses, lanes)`` and sets ``taken`` to the lanes that branch.
        """
        lines: list[str] = []
        for instruction in self.function.blocks[number].instructions:
            lines += self._lines(instruction, masked)
        if not lines:
            return None
        return compile("\n".join(lines), f"<block {number} of {self.function.name}>", "exec")

    def _lines(self, instruction: Instruction, masked: bool) -> list[str]:
        lanes = self._lanes(instruction, masked)
        if instruction.name == "bra":
            if instruction.guard in self._unknown:
                return []
            return [f"taken = {lanes if instruction.guard else 'True'}"]
        access = access_of(instruction)
        if access is not None:
            return self._access_lines(instruction, access, lanes)
        results = results_of(instruction) & self._wanted
        if not results or results <= self._unknown:
            return []
        (name,) = results
        is_parameter = instruction.name == "ld"
        value = (
            self._parameter(instruction.operands[1]) if is_parameter else integers.expression(instruction, self._value)
        )
        register = f"R[{self._registers[name]}]"
        if lanes != "None":
            value = f"np.where({lanes}, {value}, {register})"
        return [f"{register} = {value}"]

    def _lanes(self, instruction: Instruction, masked: bool) -> str:
        """Those that execute an instruction, as source: ``None`` for all that are there."""
        if not instruction.guard or instruction.guard in self._unknown:
            return "m" if masked else "None"
        guard = f"R[{self._registers[instruction.guard]}]"
        guard = f"(~{guard})" if instruction.negated else guard
        return f"(m & {guard})" if masked else guard

    def _access_lines(self, instruction: Instruction, access: Access, lanes: str) -> list[str]:
        addresses = [text for text in instruction.operands if text.startswith("[")]
        found = []
        for text, kind in zip(addresses, ("copy", "source") if access.kind == "copy" else ("",), strict=False):
            noted = Access(access.op, kind or access.kind, access.space if kind != "source" else "global", access.width)
            key = id(instruction), kind
            if key not in self._numbers:
                self._numbers[key] = len(self.accesses)
                self.accesses.append(noted)
            unknown = _names([text]) & self._unknown
            found.append(f"access({self._numbers[key]}, {'None' if unknown else self._address(text)}, {lanes})")
        return found

    def _address(self, text: str) -> str:
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise ValueError(f"ptx: required an address, got {text!r}")
        base = self._value(found[1])
        return f"{base} + {int(found[2], 0)}" if found[2] else base

    def _parameter(self, text: str) -> str | None:
        """The source of a parameter; None of what a function that is called gives."""
        found = _ADDRESS.fullmatch(text)
        names = [name for name, _ in self.function.parameters]
        if found is None or found[1] not in names or found[2]:
            return None
        return f"parameters[{names.index(found[1])}]"

    def _value(self, text: str) -> str:
        if _NUMBER.match(text):
            value = int(text.removesuffix("U"), 0)
            return f"constant({value - (1 << 64) if value >= 1 << 63 else value})"
        special = _SPECIAL.match(text)
        if special is not None:
            return f"special[{text[1:]!r}]"
        if text in self._shared:
            return f"constant({self._shared[text]})"
        return f"R[{self._registers[text]}]"
