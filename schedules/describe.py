"""Schedules in words, for reports: what a formulation, a structure and its decisions mean."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tvm_na.schedules.base import Choice

# A phrase, and the decisions whose values are counted in it, each with what it counts.
_DECISIONS: tuple[tuple[str, dict[str, str]], ...] = (
    ("tasks of {}", {"rows per task": "row", "heads per task": "head"}),
    ("{} at once", {"tiles at once": "tile"}),
    (
        "scores in blocks of {}",
        {
            "score queries at once": "query",
            "score rows at once": "row",
            "score vectors at once": "vector",
            "score channels at once": "channel",
        },
    ),
    ("softmax over {} at once", {"softmax rows at once": "row"}),
    ("sums of values in blocks of {}", {"value queries at once": "query", "value vectors at once": "vector"}),
    ("blocks of {}", {"rows at once": "row", "columns at once": "column", "heads at once": "head"}),
    ("{} one after the other", {"columns in turn": "column", "heads in turn": "head"}),
    ("{} of the band at once", {"band rows at once": "row"}),
    ("{} at once", {"keys at once": "key"}),
    ("scores unrolled up to {}", {"scores unrolling": "step"}),
    ("scores for the second time unrolled up to {}", {"weights unrolling": "step"}),
    ("values unrolled up to {}", {"value unrolling": "step"}),
    ("{} at once", {"indices at once": "index of the bias"}),
    ("products unrolled up to {}", {"product unrolling": "step"}),
    ("outputs unrolled up to {}", {"output unrolling": "step"}),
    ("queries unrolled up to {}", {"query unrolling": "step"}),
    (
        "blocks of queries of {}",
        {"query rows at once": "row", "query columns at once": "column", "query heads at once": "head"},
    ),
    (
        "blocks of keys of {}",
        {"key rows at once": "row", "key columns at once": "column", "key heads at once": "head"},
    ),
    ("rows of windows unrolled up to {}", {"window unrolling": "step"}),
    ("blocks of {} of the bias", {"bias entries at once": "entry"}),
    ("tasks of {}", {"row tiles per task": "tile", "weight blocks per task": "block of weights"}),
    ("{} at once", {"channels at once": "channel"}),
)

# The same for the gradients, whose decisions may have other meanings.
_BACKWARD_DECISIONS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "scores and gradients of weights in blocks of {}",
        {
            "score queries at once": "query",
            "score rows at once": "row",
            "score vectors at once": "vector",
            "score channels at once": "channel",
        },
    ),
    ("gradients of weights from {} at once", {"weight channels at once": "channel"}),
    ("weights and gradients of scores over {} at once", {"softmax rows at once": "row"}),
    ("gradients of queries in blocks of {}", {"value queries at once": "query", "value vectors at once": "vector"}),
    ("sums for values in blocks of {}", {"add_value vectors at once": "vector"}),
    ("sums for keys in blocks of {}", {"add_key vectors at once": "vector"}),
)

_BACKWARD = "backward lanes"

# The fields of formulations that have a tile of queries in one row.
_TILED = {"lanes": {"exact_values", "pack_values"}, _BACKWARD: {"chunks", "tiles", "pack_keys"}}

_STRUCTURES = {
    "pack first": "{} packed before all tasks",
    "pack in task": "{} packed inside of each task",
    "value rows outside": "a block of tiles meets one row of values after the other",
    "rows outside": "each tile meets one block of weights after the other",
    "weights outside": "each block of weights meets one tile after the other",
    "keys and queries in turn": "all through the first cache",
    "through the cache": "keys and values through the first cache",
    "tiles at once": "a warp for each sub-tile of a block",
    "columns in turn": "a warp for the sub-tiles along a row of a block",
    "heads in turn": "a warp for the sub-tiles of all heads of a block, the next head copied meanwhile",
}

_BACKWARD_STRUCTURES = {
    "tiles outside": "each tile meets one row of its keys after the other",
    "rows outside": "each row of keys meets one tile after the other",
}


def in_words(formulation_json: str, structure: str, choices: Iterable[Choice]) -> str:
    """A schedule in words: its parts are separated by semicolons.

    Args:
        formulation_json: Of the PrimFunc, its attribute ``tvm_na.formulation``.
        structure: The name of the structure.
        choices: The decisions. One that has no phrase here is told by its name and value.

    Raises:
        ValueError: ``formulation_json`` is no JSON object.
    """
    try:
        formulation = dict(json.loads(formulation_json))
    except (TypeError, ValueError) as error:
        raise ValueError(f"formulation_json: required a JSON object, got {formulation_json!r}") from error
    values = {choice.name: choice.value for choice in choices}
    decisions = _decisions(values, formulation.get("formulation") == _BACKWARD)
    return "; ".join([formulation_in_words(formulation_json), *_structure(formulation, structure), *decisions])


def formulation_in_words(formulation_json: str) -> str:
    """A formulation, given as JSON, in words."""
    fields = dict(json.loads(formulation_json))
    name = fields.pop("formulation", None)
    if name == "gather" and fields.keys() == {"parts", "lanes"}:
        kept = "kept" if not fields["lanes"] else f"computed twice, their sums in {_count(fields['lanes'], 'lane')}"
        return f"each query reads its own window, products in {_count(fields['parts'], 'part')}, scores {kept}"
    if name == "unfused gather" and fields.keys() == {"parts", "width"}:
        told = [f"products in {_count(fields['parts'], 'part')}"] if fields["parts"] > 1 else []
        told += [f"{_count(fields['width'], 'channel')} of a thread"] if fields["width"] > 1 else []
        return ", ".join(["each window read by itself", *told])
    if name == "backward gather" and fields.keys() == {"lanes", "rows", "columns"}:
        group = f"{_count(fields['lanes'], 'thread')} for each"
        sums = f"sums for the bias in blocks of {fields['rows']} x {fields['columns']} keys"
        return f"each query reads its own window, each key its queries, {group}{f', {sums}' if fields['rows'] else ''}"
    if name == "dense" and fields.keys() == {"rows", "vectors", "vector"}:
        vectors = f"{_count(fields['vectors'], 'vector')} of {_count(fields['vector'], 'channel')}"
        return f"tiles of {_count(fields['rows'], 'position')} x {vectors}"
    if name == "band" and fields.keys() == {"rows", "columns", "passes"}:
        kept = "kept" if fields["passes"] == 1 else "computed twice"
        return f"sub-tiles of {fields['rows']} x {fields['columns']} queries on tensor cores, scores {kept}"
    if name in _TILED and fields.keys() >= _TILED[name] | {"queries", "vector"}:
        return ", ".join([*_tile(fields), *(_field(*item) for item in fields.items())])
    return ", ".join([str(name or "unnamed formulation"), *(_field(*item) for item in fields.items())])


def _tile(fields: dict[str, Any]) -> list[str]:
    """A tile of queries in one row; takes what is told out of the fields."""
    words = [f"a tile of {_count(fields.pop('queries'), 'query')} in one row"]
    words.append(f"vectors of {_count(fields.pop('vector'), 'lane')}")
    if "chunks" in fields:
        words.append(f"{_count(fields.pop('tiles'), 'tile')} through a stage together")
        words.append(f"rows in {_count(fields.pop('chunks'), 'chunk')} with sums of their own")
        words.append(f"rows of keys {'packed' if fields.pop('pack_keys') else 'read in place'}")
    else:
        words.append(f"values of {'each window' if fields.pop('exact_values') else 'the whole box'}")
        words.append(f"values {'packed' if fields.pop('pack_values') else 'read in place'}")
    return words


def _structure(formulation: dict[str, Any], structure: str) -> list[str]:
    packed = "keys and values" if formulation.get("pack_values") else "keys"
    known = _BACKWARD_STRUCTURES if formulation.get("formulation") == _BACKWARD else _STRUCTURES
    return [known.get(part, part).format(packed) for part in structure.split(", ")]


def _decisions(values: dict[str, int], of_gradients: bool) -> list[str]:
    words = []
    for phrase, counted in (*(_BACKWARD_DECISIONS if of_gradients else ()), *_DECISIONS):
        counts = [_count(values.pop(name), what) for name, what in counted.items() if name in values]
        if counts:
            words.append(phrase.format(" x ".join(counts)))
    return words + [f"{name} {value}" for name, value in values.items()]


def _field(name: str, value: Any) -> str:
    name = name.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def _count(n: int, what: str) -> str:
    if n == 1:
        return f"1 {what}"
    noun, of, rest = what.partition(" of ")
    if noun == "index":
        return f"{n} indices{of}{rest}"
    plural = noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"
    return f"{n} {plural}{of}{rest}"
