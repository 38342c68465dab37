"""Integer instructions of PTX as expressions of NumPy: what addresses and branches are computed with.

A register of n bits is an array of int64 that holds its value with a sign, whatever its type says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvm_na.cuda.static.ptx import Instruction

Array = np.ndarray[Any, np.dtype[Any]]

_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">"}
_COMPARED["hs"] = ">="
_WITHOUT_SIGN = ("lo", "ls", "hi", "hs")
_PAIRS = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}


def bits_of(type_: str) -> int:
    """Of a register of this type; 0 of a predicate, and of what is no integer."""
    return int(type_[1:]) if type_[:1] in "subf" and type_[1:].isdigit() else 0


def is_integer(type_: str) -> bool:
    """Whether it is a type of integers, or of bits."""
    return type_[:1] in "sub" and bits_of(type_) > 0


def signed(value: str, bits: int) -> str:
    """The value of the lowest bits."""
    return value if bits >= 64 else f"((({value}) << {64 - bits}) >> {64 - bits})"


def unsigned(value: str, bits: int) -> str:
    """The same, without a sign; of 64 bits it must be none that needs the highest."""
    return value if bits >= 64 else f"(({value}) & {(1 << bits) - 1})"


def divided(a: Array, b: Array) -> Array:
    """The quotient, towards zero; 0 by 0."""
    safe = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(safe) * (np.abs(a) // np.abs(safe))


def high(a: Array, b: Array, bits: int) -> Array:
    """The upper half of a product without signs, of at most 32 bits."""
    return np.asarray((np.asarray(a).astype(np.uint64) * np.asarray(b).astype(np.uint64)) >> np.uint64(bits)).astype(
        np.int64
    )


def expression(instruction: Instruction, operand: Callable[[str], str]) -> str | None:
    """What an instruction computes, as source of Python; None if it is none that is known here.

    Args:
        instruction: It has one result, its first operand.
        operand: The source of an operand's value.
    """
    parts = instruction.op.split(".")
    given = [operand(text) for text in instruction.operands[1:]]
    if parts[-1] == "pred":
        return _of_predicates(parts[0], given)
    if parts[0] == "setp":
        return _compared(parts, given)
    if parts[0] in ("cvta", "mov"):
        return given[0]
    if not is_integer(parts[-1]):
        return None
    if parts[0] == "cvt":
        return _converted(parts, given[0]) if is_integer(parts[-2]) else None
    return _computed(parts, given)


def _of_predicates(name: str, given: Sequence[str]) -> str | None:
    if name in ("and", "or", "xor"):
        return f"({given[0]} {_PAIRS[name]} {given[1]})"
    return {"not": f"(~{given[0]})", "mov": given[0]}.get(name)


def _compared(parts: Sequence[str], given: Sequence[str]) -> str | None:
    """``setp.ge.s32``, ``setp.lt.and.u32``; of numbers without a point."""
    how, type_ = parts[1], parts[-1]
    if not is_integer(type_) or how not in _COMPARED:
        return None
    plain = type_[0] == "u" or how in _WITHOUT_SIGN
    a, b = ((unsigned if plain else signed)(text, bits_of(type_)) for text in given[:2])
    found = f"({a} {_COMPARED[how]} {b})"
    return f"({found} {_PAIRS[parts[2]]} {given[2]})" if len(given) == 3 else found


def _converted(parts: Sequence[str], value: str) -> str:
    to, source = parts[-2], parts[-1]
    whole = (signed if source[0] == "s" else unsigned)(value, bits_of(source))
    return signed(whole, bits_of(to))


def _computed(parts: Sequence[str], given: Sequence[str]) -> str | None:
    name, type_ = parts[0], parts[-1]
    bits, view = bits_of(type_), signed if type_[0] == "s" else unsigned
    if name in _PAIRS:
        return signed(f"({given[0]} {_PAIRS[name]} {given[1]})", bits)
    if name in ("mul", "mad", "mul24", "mad24"):
        return _product(parts, given, bits, view)
    if name in ("bfi", "shf"):
        return signed(_shifted(parts, given), bits)
    seen = [view(text, bits) for text in given]
    found = {
        "shl": lambda: f"np.where({seen[1]} < {bits}, ({given[0]}) << ({seen[1]} & 63), 0)",
        "shr": lambda: f"(({seen[0]}) >> np.minimum({unsigned(given[1], 32)}, 63))",
        "min": lambda: f"np.minimum({seen[0]}, {seen[1]})",
        "max": lambda: f"np.maximum({seen[0]}, {seen[1]})",
        "div": lambda: f"divided({seen[0]}, {seen[1]})",
        "rem": lambda: f"(({seen[0]}) - divided({seen[0]}, {seen[1]}) * ({seen[1]}))",
        "neg": lambda: f"(-({given[0]}))",
        "not": lambda: f"(~({given[0]}))",
        "abs": lambda: f"np.abs({signed(given[0], bits)})",
        "selp": lambda: f"np.where({given[2]}, {given[0]}, {given[1]})",
        "bfe": lambda: f"(({seen[0]}) >> ({given[1]} & 255)) & ((1 << ({given[2]} & 255)) - 1)",
    }.get(name)
    if found is None or (name == "bfe" and type_[0] == "s"):
        return None
    return signed(found(), bits)


def _shifted(parts: Sequence[str], given: Sequence[str]) -> str:
    """``bfi``, which puts the lowest bits of one number into another, and ``shf``, which shifts two as one."""
    if parts[0] == "bfi":
        mask = f"(((1 << ({given[3]} & 255)) - 1) << ({given[2]} & 255))"
        return f"((({given[1]}) & ~{mask}) | ((({given[0]}) << ({given[2]} & 255)) & {mask}))"
    both = f"((({given[1]}) << 32) | {unsigned(given[0], 32)})"
    by = f"({given[2]} & 31)" if parts[2] == "wrap" else f"np.clip({given[2]}, 0, 32)"
    return f"({both} >> {by})" if parts[1] == "r" else f"({both} >> (32 - {by}))"


def _product(parts: Sequence[str], given: Sequence[str], bits: int, view: Callable[[str, int], str]) -> str | None:
    """``mul.lo``, ``mul.hi``, ``mul.wide``, and with a third operand ``mad``."""
    half = parts[1]
    a, b = view(given[0], bits), view(given[1], bits)
    if half == "hi":
        if bits > 32:
            return None
        found = f"(({a}) * ({b}) >> {bits})" if view is signed else f"high({a}, {b}, {bits})"
    else:
        found = f"(({a}) * ({b}))"
    found = f"({found} + {given[2]})" if len(given) == 3 else found
    return signed(found, 2 * bits if half == "wide" else bits)
