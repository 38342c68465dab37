"""What a value of JSON must be made of, and where one is not."""

from __future__ import annotations

from typing import Any

#: A value's class; None; ``(kind, ...)`` for one of them; ``[kind]`` for a list; ``{str: kind}`` for an object of any
#: names, ``{"name": kind}`` for one with at least these; or a function that says whether a value will do.
Kind = Any


def is_size(value: Any) -> bool:
    """Whether it is a number of elements or of samples: positive, and 64 bits can count them."""
    return type(value) is int and 0 < value < 2**63


def is_shape(value: Any) -> bool:
    """Whether it is a list of sizes, with None for a batch, and not empty."""
    return type(value) is list and len(value) > 0 and all(size is None or is_size(size) for size in value)


def is_bytes(value: Any) -> bool:
    """Whether it is a number of bytes, or of elements that may be none."""
    return type(value) is int and 0 <= value < 2**63


def mismatch(value: Any, kind: Kind, place: str = "") -> str | None:
    """What of ``value`` is not of a kind, in words that name its place; None if all is."""
    if isinstance(kind, tuple):
        found = [mismatch(value, one, place) for one in kind]
        return None if None in found else found[-1]
    if isinstance(kind, (list, dict)):
        if type(value) is not type(kind):
            return _said(value, place)
        return _first(value, kind, place)
    # A bool is an int to isinstance, and none here.
    will_do = type(value) is kind if isinstance(kind, type) else value is None if kind is None else kind(value)
    return None if will_do else _said(value, place)


def _first(value: Any, kind: Any, place: str) -> str | None:
    """The first mismatch of the parts of a list or an object."""
    if isinstance(kind, list):
        parts = [(f"{place}[{i}]", part, kind[0]) for i, part in enumerate(value)]
    elif str in kind:
        parts = [(_below(place, name), part, kind[str]) for name, part in value.items()]
    else:
        for name in kind:
            if name not in value:
                return f"no {_below(place, name)}"
        parts = [(_below(place, name), value[name], part) for name, part in kind.items()]
    return next((said for at, part, one in parts if (said := mismatch(part, one, at)) is not None), None)


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _said(value: Any, place: str) -> str:
    text = f"{value}" if isinstance(value, float) else ascii(value)
    return f"{text if len(text) <= 60 else text[:60] + '...'} as {place}"
