"""CUDA C++ as C++ for the emulator: shared arrays and inline assembly become calls, kernels get an entry each."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from tests.cuda_emulator import ptx
from tests.cuda_emulator.errors import UnsupportedCuda
from tests.cuda_emulator.scan import Function, closing, functions, line_of, split, without_comments

#: What errors of the compiler call the source.
FILE = "kernel.cu"
_HEADERS = r"cuda\.h|cuda_fp16\.h|cuda_bf16\.h|cuda_runtime\.h|math_constants\.h|mma\.h"
_INCLUDE = re.compile(rf"^[ \t]*#[ \t]*include[ \t]*<(?:{_HEADERS})>", re.MULTILINE)
_ASM = re.compile(r"\b(?:asm|__asm__|__asm)\b\s*(?:(?:volatile|__volatile__)\b\s*)?(\()")
_ALIGNMENT = r"(?:(?:alignas|__align__)\s*\(\s*(\d+)\s*\)\s*)?"
_SHARED = re.compile(
    rf"{_ALIGNMENT}(?:static\s+)?(extern\s+)?__shared__\s+{_ALIGNMENT}"
    r"((?:[\w:]+\s+)*?[\w:]+)\s+(\w+)\s*((?:\[[^\[\];]*\]\s*)*);"
)
_INTEGERS = {
    "bool": 1,
    **{f"{sign}{name}": size for sign in ("", "unsigned ") for name, size in {"char": 1, "short": 2, "int": 4}.items()},
    **{f"{sign}{name}": 8 for sign in ("", "unsigned ") for name in ("long", "long long")},
    **{f"{sign}int{bits}_t": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"signed char": 1, "uchar": 1, "ushort": 2, "uint": 4, "unsigned": 4, "size_t": 8},
}
_UNSIGNED = re.compile(r"u|size_t|bool")
FLOATS = {"half": 2, "__half": 2, "nv_bfloat16": 2, "__nv_bfloat16": 2, "float": 4, "double": 8}


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: ``type`` is what a pointer points to, or the scalar's own, without qualifiers."""

    name: str
    type: str
    pointer: bool

    @property
    def integers(self) -> range | None:
        """The integers that it can hold, None if it holds none."""
        if self.pointer or self.type not in _INTEGERS:
            return None
        if self.type == "bool":
            return range(2)
        bits = 8 * _INTEGERS[self.type]
        return range(2**bits) if _UNSIGNED.match(self.type) else range(-(2 ** (bits - 1)), 2 ** (bits - 1))


@dataclass(frozen=True)
class Kernel:
    """A kernel of the source. ``most_threads`` of a block are what its launch bounds allow, None without any."""

    name: str
    parameters: tuple[Parameter, ...]
    most_threads: int | None
    line: int


def _replace(text: str, start: int, end: int, replacement: str) -> str:
    """``text`` with its part from ``start`` to ``end`` replaced, and as many newlines as before."""
    return text[:start] + replacement + "\n" * text.count("\n", start, end) + text[end:]


def _translate_asm(text: str) -> str:
    position = 0
    while found := _ASM.search(text, position):
        line = line_of(text, found.start())
        end = closing(text, found.start(1))
        inside = text[found.end(1) : end]
        try:
            code = ptx.translate(inside, line)
        except ptx.UnknownAssembly as error:
            # An error only where it is compiled: sources have preprocessor branches for other GPUs.
            quoted = re.sub(r"\s+", " ", str(error)).replace("\\", "\\\\").replace('"', '\\"')
            code = f'static_assert(false, "the emulator does not know this inline assembly: {quoted}")'
        text = _replace(text, found.start(), end + 1, code)
        position = found.start() + len(code)
    return text


def _translate_shared(text: str) -> str:
    number = 0
    while found := _SHARED.search(text):
        outer, extern, inner, kind, name, extents = found.groups()
        before = text[: found.start()]
        if before.count("{") == before.count("}"):
            raise UnsupportedCuda(f"line {line_of(text, found.start())}: shared memory outside of a kernel: {found[0]}")
        alignment = max(int(outer or 0), int(inner or 0))
        if extern:
            code = f'{kind}* const {name} = emu::dynamic<{kind}, {alignment}>("{name}");'
        else:
            code = f'auto& {name} = emu::shared<{kind}{extents}, {alignment}>({number}, "{name}");'
        number += 1
        text = _replace(text, found.start(), found.end(), code)
    if found := re.search(r"\b__shared__\b[^;]*", text):
        raise UnsupportedCuda(f"line {line_of(text, found.start())}: {' '.join(found[0].split())}")
    return text


def _parameter(text: str) -> Parameter:
    words = re.sub(r"\b(const|volatile|__restrict__|__grid_constant__)\b", " ", text)
    found = re.fullmatch(r"([\w:\s]+?)\s*(\*?)\s*(\w+)", words.strip())
    if found is None:
        raise UnsupportedCuda(f"a kernel's parameter: {text}")
    kind = re.sub(r"^unsigned int$", "unsigned", " ".join(found[1].split()))
    parameter = Parameter(found[3], kind, bool(found[2]))
    if not parameter.pointer and parameter.integers is None and kind not in FLOATS:
        raise UnsupportedCuda(f"a kernel's parameter: {text}")
    return parameter


def _kernel(function: Function, text: str) -> Kernel:
    parameters = tuple(_parameter(p) for p in split(function.parameters, ",") if p)
    bounds = split(function.bounds, ",")[0] if function.bounds else None
    if bounds is not None and not bounds.isdigit():
        raise UnsupportedCuda(f"launch bounds that are not a number: {bounds}")
    return Kernel(function.name, parameters, int(bounds) if bounds else None, line_of(text, function.body))


def _entry(number: int, kernel: Kernel) -> str:
    """A function that calls a kernel with arguments given by addresses."""
    values = []
    for i, parameter in enumerate(kernel.parameters):
        if parameter.pointer:
            values.append(f"({parameter.type}*)arguments[{i}]")
        else:
            carrier = "int64_t" if parameter.integers is not None else "double"
            values.append(f"({parameter.type})*(const {carrier}*)arguments[{i}]")
    call = f"{kernel.name}({', '.join(values)})"
    return f'extern "C" void emulation_kernel_{number}(void* const* arguments) {{ (void)arguments; {call}; }}\n'


@functools.lru_cache(maxsize=64)
def translate(source: str) -> tuple[str, dict[str, Kernel]]:
    """C++ of a CUDA source, in which the lines have their numbers, and its kernels by name, in order.

    Raises:
        UnsupportedCuda: For shared arrays or parameters of kinds that the emulator does not know. Unknown assembly
            and functions are errors when the result is compiled.
    """
    text = _INCLUDE.sub("", without_comments(source))
    kernels = {f.name: _kernel(f, text) for f in functions(text) if f.kernel}
    if not kernels:
        raise UnsupportedCuda("no kernel in the source")
    text = _translate_shared(_translate_asm(text))
    entries = "".join(_entry(number, kernel) for number, kernel in enumerate(kernels.values()))
    return f'#include "cuda_cpu.h"\n#line 1 "{FILE}"\n{text}\n#line 1 "entries"\n{entries}', kernels
