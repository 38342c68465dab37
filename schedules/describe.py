"""Schedules for people: every tunable parameter, as ``name: value``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tvm_na.schedules.base import Parameter


def describe(formulation_json: str, sketch: str | None = None, parameters: Iterable[Parameter] = ()) -> list[str]:
    """The parts of a schedule, each ``name: value``: the formulation and its fields, the sketch, the parameters.

    Args:
        formulation_json: Of the PrimFunc, its attribute ``tvm_na.formulation``.
        sketch: The name of the sketch; None tells the formulation alone.
        parameters: With their values.

    Raises:
        ValueError: ``formulation_json`` is no JSON object.
    """
    try:
        fields = dict(json.loads(formulation_json))
    except (TypeError, ValueError) as error:
        raise ValueError(f"formulation_json: required a JSON object, got {formulation_json!r}") from error
    told: dict[str, Any] = {"formulation": fields.pop("formulation", "unnamed"), **fields}
    if sketch is not None:
        told["sketch"] = sketch
    told |= {parameter.name: parameter.value for parameter in parameters}
    return [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in told.items()]


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
