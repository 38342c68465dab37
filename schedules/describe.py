"""Schedules for people: every tunable parameter, as ``name: value``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def describe(
    formulation_json: str, sketch: str | None = None, parameters: Mapping[str, int] | None = None
) -> list[str]:
    """The parts of a schedule, each ``name: value``: the formulation and its fields, the sketch, the parameters.

    Args:
        formulation_json: Of the PrimFunc, its attribute ``tvm_na.formulation``.
        sketch: The name of the sketch; None tells the formulation alone.
        parameters: Their values by name.

    Raises:
        ValueError: ``formulation_json`` is no JSON object.
    """
    try:
        fields = dict(json.loads(formulation_json))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"formulation_json: required a JSON object, got {formulation_json[:200]!r}") from error
    told: dict[str, Any] = {"formulation": fields.pop("formulation", "unnamed"), **fields}
    if sketch is not None:
        told["sketch"] = sketch
    told |= parameters or {}
    return [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in told.items()]


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
