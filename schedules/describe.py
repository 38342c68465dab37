"""Schedules for people: everything that was decided, as ``name: value``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tvm_na.schedules.base import Choice


def describe(formulation_json: str, structure: str | None = None, choices: Iterable[Choice] = ()) -> list[str]:
    """The parts of a schedule, each ``name: value``: the formulation and its fields, the structure, the decisions.

    Args:
        formulation_json: Of the PrimFunc, its attribute ``tvm_na.formulation``.
        structure: The name of the structure; None tells the formulation alone.
        choices: The decisions.

    Raises:
        ValueError: ``formulation_json`` is no JSON object.
    """
    try:
        fields = dict(json.loads(formulation_json))
    except (TypeError, ValueError) as error:
        raise ValueError(f"formulation_json: required a JSON object, got {formulation_json!r}") from error
    told: dict[str, Any] = {"formulation": fields.pop("formulation", "unnamed"), **fields}
    if structure is not None:
        told["structure"] = structure
    told |= {choice.name: choice.value for choice in choices}
    return [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in told.items()]


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
