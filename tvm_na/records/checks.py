"""What is read of a record, checked: numbers that are none, and sizes that nothing has."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from tvm_na.problems.registry import Problem, problem_from_json


@functools.lru_cache(maxsize=1024)
def checked_problem(given: str) -> Problem:
    """The problem of a JSON text; one of ``MALFORMED`` where it is none, or a size is too large for one."""
    json.loads(given, parse_int=lambda digits: checked_count("size", int(digits), 0))
    return problem_from_json(given)


def checked_seconds(given: Any) -> tuple[float, ...]:
    """Times in seconds; ValueError or TypeError where they are none."""
    seconds = tuple(float(s) for s in given)
    if not seconds or not all(s > 0 and math.isfinite(s) for s in seconds):
        raise ValueError(f"run_secs: required seconds > 0, got {seconds}")
    return seconds


def checked_count(what: str, given: Any, least: int = 1) -> int:
    """An integer that fits into 32 bits; ValueError where it is none."""
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given < 2**31:
        raise ValueError(f"required {what} from {least} to 2^31 - 1, got {given!r}")
    return given


def text(given: Any) -> str:
    """A text; TypeError where it is none."""
    if not isinstance(given, str):
        raise TypeError(f"required a text, got {given!r}")
    return given
