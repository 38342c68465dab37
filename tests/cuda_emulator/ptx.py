"""Inline PTX as calls of the emulator. What is not in the tables below is an error, never skipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.cuda_emulator.scan import split, without_comments

_LITERALS = re.compile(r'\s*((?:"(?:\\.|[^"\\\n])*"\s*)*)')
_OPERAND = re.compile(r'"([^"]+)"\s*\((.*)\)', re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)%*([\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_REGISTERS = {"pred": "bool", "f32": "float", "f64": "double"}
_SPECIAL = {"laneid": "emu::current->lane"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_MMA_DEPTHS = {"f16": (8, 16), "bf16": (8, 16), "tf32": (4, 8)}


class UnknownAssembly(Exception):
    """Assembly that the emulator does not know; the message quotes it."""


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, in bytes."""

    base: str
    offset: int


Operand = str | list[str] | Address
Rule = Callable[[re.Match[str], list[Operand], int], str]


def _parse(text: str) -> tuple[str, list[str]]:
    """The template and the C++ expressions of what stands in ``asm(...)``."""
    sections = split(text, ":")
    literals = _LITERALS.fullmatch(sections[0])
    if literals is None:
        raise UnknownAssembly(text.strip())
    pieces = re.findall(r'"((?:\\.|[^"\\\n])*)"', literals[1])
    template = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), "".join(pieces))
    expressions = []
    for operand in (o for section in sections[1:3] for o in split(section, ",") if o):
        found = _OPERAND.fullmatch(operand)
        if found is None:
            raise UnknownAssembly(operand)
        expressions.append(found[2].strip())
    return template, expressions


def _statements(template: str) -> Iterator[str]:
    """Instructions, directives, and the braces around them."""
    rest = without_comments(template).strip()
    while rest:
        if rest[0] in "{}":
            yield rest[0]
            rest = rest[1:].strip()
        else:
            statement, _, rest = rest.partition(";")
            yield statement.strip()
            rest = rest.strip()


def _register(text: str, expressions: list[str]) -> str:
    """C++ for an operand's register, number or special register."""
    text = text.strip()
    if found := re.fullmatch(r"%(\d+)", text):
        if int(found[1]) >= len(expressions):
            raise UnknownAssembly(text)
        return f"({expressions[int(found[1])]})"
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return f"emu::cast<float>(0x{found[1]}u)"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", text):
        return text
    name = text.lstrip("%")
    if name in _SPECIAL:
        return _SPECIAL[name]
    if not re.fullmatch(r"[A-Za-z_$]\w*", name):
        raise UnknownAssembly(text)
    return f"ptx_{name}"


def _operand(text: str, expressions: list[str]) -> Operand:
    if text.startswith("{"):
        return [_register(part, expressions) for part in split(text[1:-1], ",")]
    if text.startswith("["):
        found = re.fullmatch(r"\[\s*([^\s+]+)\s*(?:\+\s*(-?\d+)\s*)?\]", text)
        if found is None:
            raise UnknownAssembly(text)
        return Address(_register(found[1], expressions), int(found[2] or 0))
    return _register(text, expressions)


def _registers(operand: Operand, *counts: int) -> list[str]:
    registers = operand if isinstance(operand, list) else [operand]
    if len(registers) not in counts or not all(isinstance(register, str) for register in registers):
        raise UnknownAssembly(f"an operand of {len(registers)} registers")
    return registers  # type: ignore[return-value]


def _address(operand: Operand) -> Address:
    if not isinstance(operand, Address):
        raise UnknownAssembly(f"{operand} in place of an address")
    return operand


def _shared(operand: Operand) -> str:
    address = _address(operand)
    return f"uint32_t({address.base}) + {address.offset}"


def _words(operand: Operand, count: int) -> str:
    return ", ".join(f"emu::word{register}" for register in _registers(operand, count))


def _mma(found: re.Match[str], operands: list[Operand], line: int) -> str:
    depth, element = int(found[1]), found[2]
    if depth not in _MMA_DEPTHS[element]:
        raise UnknownAssembly(found[0])
    d, a, b, c = operands
    steps = depth // _MMA_DEPTHS[element][0]
    results = " ".join(f"{register} = ptx_call.d[{i}];" for i, register in enumerate(_registers(d, 4)))
    return (
        f"emu::Mma ptx_call = {{emu::Element::{element}, {depth}, {{{_words(a, 2 * steps)}}}, {{{_words(b, steps)}}}, "
        f"{{{', '.join(_registers(c, 4))}}}, {{}}}}; emu::run(ptx_call, {line}); {results}"
    )


def _ldmatrix(found: re.Match[str], operands: list[Operand], line: int) -> str:
    target, source = operands
    registers = _registers(target, int(found[1]))
    results = " ".join(f"emu::put({register}, ptx_call.result[{i}]);" for i, register in enumerate(registers))
    return (
        f"emu::LdMatrix ptx_call = {{{found[1]}, {'true' if found[2] else 'false'}, {_shared(source)}, {line}, {{}}}}; "
        f"emu::run(ptx_call); {results}"
    )


def _cp_async(found: re.Match[str], operands: list[Operand], line: int) -> str:
    target, source, size, *read = operands
    address = _address(source)
    bytes_read = _registers(read[0], 1)[0] if read else size
    if len(read) > 1:
        raise UnknownAssembly(found[0])
    allowed = "== 16" if found[1] == "cg" else "<= 16"
    return (
        f'static_assert({size} {allowed} && ({size} & ({size} - 1)) == 0 && {size} >= 4, "cp.async.{found[1]} of '
        f'another size"); emu::copy_async({_shared(target)}, (const char*)({address.base}) + {address.offset}, '
        f"{size}, int({bytes_read}), {line});"
    )


def _type(letter: str, bits: str) -> str:
    """C++ for a PTX type like ``u32``."""
    return _REGISTERS.get(letter + bits) or f"{'' if letter == 's' else 'u'}int{bits}_t"


def _place(found: re.Match[str], operand: Operand, line: int) -> tuple[str, int]:
    """C++ for what ``ld`` or ``st`` names in memory, and how many numbers it has."""
    address = _address(operand)
    lanes = int(found["lanes"] or 1)
    kind = f"emu::Vector<{_type(found['letter'], found['bits'])}, {lanes}>"
    if found["space"] == "shared":
        return f"(*emu::at_shared<{kind}>({_shared(operand)}, {line}))", lanes
    return f"(*emu::at_global<{kind}>((void*)({address.base}), {address.offset}, {line}))", lanes


def _load(found: re.Match[str], operands: list[Operand], line: int) -> str:
    place, lanes = _place(found, operands[1], line)
    stores = (f"emu::put({r}, ptx_value.lane[{i}]);" for i, r in enumerate(_registers(operands[0], lanes)))
    return f"auto ptx_value = {place}; {' '.join(stores)}"


def _store(found: re.Match[str], operands: list[Operand], line: int) -> str:
    place, lanes = _place(found, operands[0], line)
    stores = (f"emu::put(ptx_place.lane[{i}], {r});" for i, r in enumerate(_registers(operands[1], lanes)))
    return f"auto& ptx_place = {place}; {' '.join(stores)}"


def _barrier(found: re.Match[str], operands: list[Operand], line: int) -> str:
    if operands != ["0"]:
        raise UnknownAssembly(f"{found[0]} of another barrier than 0")
    return f"__syncthreads({line});"


def _formula(pattern: str) -> Rule:
    """C++ from a pattern in which ``{0}`` is the first operand."""

    def rule(found: re.Match[str], operands: list[Operand], line: int) -> str:
        if len(operands) != len(set(re.findall(r"\{\d\}", pattern))):
            raise UnknownAssembly(f"{found[0]} with {len(operands)} operands")
        return pattern.format(*(_registers(operand, 1)[0] for operand in operands), line=line)

    return rule


def _compare(found: re.Match[str], operands: list[Operand], line: int) -> str:
    del line
    sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[found[1]]
    result, a, b = (_registers(operand, 1)[0] for operand in operands)
    kind = _type(found[2], found[3])
    return f"{result} = {kind}({a}) {sign} {kind}({b});"


_MEMORY = (
    r"(?:\.(?:weak|volatile))?\.(?P<space>global|shared)(?:::cta)?(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+))*"
    r"(?:\.v(?P<lanes>[24]))?\.(?P<letter>[busf])(?P<bits>8|16|32|64)"
)
_FLOAT = r"(?:\.(?:approx|rn))?(?:\.ftz)?\.f32"
_RULES: list[tuple[str, Rule]] = [
    (r"mma\.sync\.aligned\.m16n8k(4|8|16)\.row\.col\.f32\.(f16|bf16|tf32)\.\2\.f32", _mma),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?(?:\.shared(?:::cta)?)?\.b16", _ldmatrix),
    (r"cp\.async\.(ca|cg)\.shared(?:::cta)?\.global(?:\.L2::(?:64|128|256)B)?", _cp_async),
    (r"cp\.async\.commit_group", _formula("emu::commit_copies();")),
    (r"cp\.async\.wait_group", _formula("emu::wait_copies({0});")),
    (r"(?:bar|barrier)\.sync(?:\.aligned)?", _barrier),
    (r"cvta\.to\.shared\.u64", _formula("{0} = emu::shared_address((const void*)({1}), {line});")),
    (r"cvt\.rn\.bf16x2\.f32", _formula("emu::put({0}, emu::pack<nv_bfloat16>({1}, {2}));")),
    (r"cvt\.rn\.f16x2\.f32", _formula("emu::put({0}, emu::pack<half>({1}, {2}));")),
    (r"cvt\.rna\.tf32\.f32", _formula("emu::put({0}, emu::tf32({1}));")),
    (r"mov\.[busf](?:32|64)", _formula("emu::put({0}, {1});")),
    (r"setp\.(eq|ne|lt|le|gt|ge)\.([busf])(32|64)", _compare),
    (rf"ld{_MEMORY}", _load),
    (rf"st{_MEMORY}", _store),
    (rf"ex2{_FLOAT}", _formula("{0} = exp2f({1});")),
    (rf"add{_FLOAT}", _formula("{0} = {1} + {2};")),
    (rf"mul{_FLOAT}", _formula("{0} = {1} * {2};")),
]
_COMPILED = [(re.compile(pattern), rule) for pattern, rule in _RULES]


def _instruction(statement: str, expressions: list[str], line: int) -> str:
    found = _INSTRUCTION.fullmatch(statement)
    if found is None:
        raise UnknownAssembly(statement)
    negated, predicate, opcode, rest = found.groups()
    known = next(((name, rule) for pattern, rule in _COMPILED if (name := pattern.fullmatch(opcode))), None)
    if known is None:
        raise UnknownAssembly(statement)
    name, rule = known
    operands = [_operand(part, expressions) for part in split(rest, ",")] if rest else []
    try:
        code = rule(name, operands, line)
    except (UnknownAssembly, ValueError, IndexError) as error:
        raise UnknownAssembly(f"{statement} ({error})") from error
    return f"if ({negated}ptx_{predicate}) {{ {code} }}" if predicate else f"{{ {code} }}"


def translate(text: str, line: int) -> str:
    """A C++ statement, without its semicolon, that does what ``asm(text)`` does.

    Args:
        text: What stands between the parentheses of the ``asm`` statement.
        line: Its line in the source, for errors at run time.

    Raises:
        UnknownAssembly: For anything else than what the tables of this module have.
    """
    template, expressions = _parse(text)
    code = []
    for statement in _statements(template):
        if statement in "{}":
            code.append(statement)
        elif found := re.fullmatch(r"\.reg\s+\.(?:(pred)|([busf])(16|32|64))\s+([\w$%,\s]+)", statement):
            kind = "bool" if found[1] else _type(found[2], found[3])
            names = ", ".join(f"ptx_{name.strip().lstrip('%')}" for name in found[4].split(","))
            code.append(f"{kind} {names};")
        else:
            code.append(_instruction(statement, expressions, line))
    return f"do {{ {' '.join(code)} }} while (0)"
