"""Damage to CUDA sources, for tests of what notices it."""

from __future__ import annotations

import re

from tests.cuda_emulator.scan import Function, closing, functions, split, without_comments

_WAIT = r"__syncthreads\s*\(|__syncwarp\s*\(|\bcp\.async\.wait_"
_STATEMENT = re.compile(r"\b(\w+)\s*(?:(?:volatile|__volatile__)\s*)?(\()")
_ASM = ("asm", "__asm__", "__asm")


def _spans(source: str) -> list[tuple[int, int]]:
    """Where in ``source`` barriers and waits are, each a statement with its semicolon.

    Those are ``__syncthreads()``, ``__syncwarp()``, assembly with ``cp.async.wait_*``, and calls of device functions
    that do nothing but one of these, whose own bodies are left out.
    """
    text = without_comments(source)
    found = list(functions(text))
    helpers = {f.name for f in found if not f.kernel and _only_waits(text, f)}
    spans = []
    for function in (f for f in found if f.name not in helpers):
        position = function.body
        while call := _STATEMENT.search(text, position, function.end):
            end = closing(text, call.start(2))
            semicolon = re.compile(r"\s*;").match(text, end + 1)
            waits = call[1] in helpers or (call[1] in ("__syncthreads", "__syncwarp"))
            waits |= call[1] in _ASM and re.search(_WAIT, text[call.end() : end]) is not None
            if waits and semicolon is not None:
                spans.append((call.start(), semicolon.end()))
                position = semicolon.end()
            else:
                position = call.end()
    return spans


def _only_waits(text: str, function: Function) -> bool:
    statements = [s for s in split(text[function.body : function.end], ";") if s]
    return len(statements) == 1 and re.search(_WAIT, statements[0]) is not None


def barriers(source: str) -> int:
    """How many barriers and waits for copies there are: ``without_barrier`` takes their numbers from 0."""
    return len(_spans(source))


def without_barrier(source: str, n: int) -> str:
    """``source`` without the ``n``-th of its barriers and waits; lines keep their numbers.

    Raises:
        IndexError: If there are not so many.
    """
    start, end = _spans(source)[n]
    return source[:start] + ";" + "\n" * source.count("\n", start, end) + source[end:]


def replaced(source: str, old: str, new: str, n: int = 0) -> str:
    """``source`` with the ``n``-th ``old`` replaced by ``new``.

    Raises:
        IndexError: If there are not so many.
    """
    start = [found.start() for found in re.finditer(re.escape(old), source)][n]
    return source[:start] + new + source[start + len(old) :]
