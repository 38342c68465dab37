"""Where things are in C++ source: comments, brackets, functions. Nothing here moves a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT_OR_STRING = re.compile(rf"(//[^\n]*|/\*.*?\*/)|{_STRING}|'(?:\\.|[^'\\\n])+'", re.DOTALL)
_BRACKET_OR_STRING = re.compile(rf"{_STRING}|'(?:\\.|[^'\\\n])+'|[()\[\]{{}}]")
_FUNCTION = re.compile(
    r"__(?P<space>global|device)__\b(?P<head>[^;{}()]*?(?:__launch_bounds__\s*\((?P<bounds>[^()]*)\)[^;{}()]*?)?)"
    r"\b(?P<name>\w+)\s*(?P<open>\()"
)


@dataclass(frozen=True)
class Function:
    """A function with a body: ``text[body:end]`` is what its braces enclose."""

    name: str
    kernel: bool
    bounds: str | None
    parameters: str
    body: int
    end: int


def without_comments(text: str) -> str:
    """Spaces in place of comments."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0]) if found[1] else found[0]

    return _COMMENT_OR_STRING.sub(blank, text)


def closing(text: str, start: int) -> int:
    """Where the bracket closes that opens at ``start``; a ValueError if it does not."""
    depth = 0
    for found in _BRACKET_OR_STRING.finditer(text, start):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.start()
    raise ValueError(f"line {line_of(text, start)}: a bracket that does not close")


def split(text: str, separator: str) -> list[str]:
    """The parts of ``text`` between separators outside of brackets and strings, stripped."""
    parts, depth, last, position = [], 0, 0, 0
    tokens = re.compile(rf"{_BRACKET_OR_STRING.pattern}|{re.escape(separator)}")
    while found := tokens.search(text, position):
        position = found.end()
        if found[0] == separator and depth == 0:
            parts.append(text[last : found.start()].strip())
            last = position
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(found[0], 0)
    return [*parts, text[last:].strip()]


def line_of(text: str, position: int) -> int:
    """The number of the line, from 1."""
    return text.count("\n", 0, position) + 1


def functions(text: str) -> Iterator[Function]:
    """Kernels and device functions of a source without comments; declarations are left out."""
    for found in _FUNCTION.finditer(text):
        end_of_parameters = closing(text, found.start("open"))
        rest = re.compile(r"\s*\{").match(text, end_of_parameters + 1)
        if rest is None:
            continue
        yield Function(
            name=found["name"],
            kernel=found["space"] == "global",
            bounds=found["bounds"],
            parameters=text[found.end("open") : end_of_parameters],
            body=rest.end(),
            end=closing(text, rest.end() - 1),
        )
