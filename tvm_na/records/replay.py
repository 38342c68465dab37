"""A tuning record put on a function: on its own problem, or transferred to another (imports TVM).

A record is data. A compact one has the sketch and the values of the tunable parameters; of another they are read from
its trace. Its search space schedules with them; no instruction of a trace is ever executed. Records are measured with a
batch of 1, since MetaSchedule wants sizes; kernels are built with a symbolic batch. No schedule splits the batch, so
that both have the same values.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from math import log2
from typing import Any

from tvm_na.problems.registry import Problem
from tvm_na.records.record import Record
from tvm_na.records.rejections import InapplicableError, Scope
from tvm_na.records.trace import read_trace
from tvm_na.records.write import structural_hash, trace_as_json
from tvm_na.schedules import SearchSpace, spaces_for
from tvm_na.schedules.base import Plan, Point, Scheduled
from tvm_na.targets.target import NATarget, parse_target


def formulation_of(func: Any) -> str:
    """The formulation of a PrimFunc, as canonical JSON."""
    return str(func.attrs["tvm_na.formulation"])


def replayed(record: Record, problem: Problem, target: NATarget) -> Any:
    """The IRModule of ``problem`` scheduled as ``record`` says, with a symbolic batch.

    Raises:
        InapplicableError: of a compact record a name or a value is no longer there; of another the expression is
            another than the one that was measured, or the record does not say what its search space does.
    """
    if not record.is_compact:
        _measured(record, problem, target)
        return recorded(record, *with_formulation(record.formulation, problem, target, None), target).schedule.mod
    try:
        return at_point(point_of(record, target), problem, target)
    except InapplicableError as error:
        raise InapplicableError(f"the search space has changed: {error}", error.scope) from error


def at_point(point: Point, problem: Problem, target: NATarget) -> Any:
    """The IRModule of ``problem`` scheduled as ``point`` says, with a symbolic batch.

    Raises:
        InapplicableError: there is no such formulation, sketch or parameter, or a value is none of its options.
    """
    space, func = with_formulation(point.formulation, problem, target, None)
    return _applied(space, func, target, Plan(point.sketch, exact=point.parameters)).schedule.mod


def transferred(record: Record, problem: Problem, target: NATarget) -> Any:
    """The IRModule of ``problem``, scheduled with the parameters of the record of another one, or of another level.

    Raises:
        InapplicableError: its formulation or sketch is none of those of ``problem``, or it does not apply to
            its own problem.
    """
    if record.target == target.name:
        space, func = with_formulation(record.formulation, problem, target, None)
    else:
        space, func = _nearest_formulation(record.formulation, problem, target)
    point = point_of(record, parse_target(record.target))
    if point.sketch not in space.sketches(func, target):
        raise InapplicableError(f"{problem} has no sketch {point.sketch!r}")
    return _applied(space, func, target, Plan(point.sketch, like=point.parameters)).schedule.mod


def point_of(record: Record, target: NATarget) -> Point:
    """What a record says: its formulation, sketch and tunable parameters.

    Raises:
        InapplicableError: it has a trace, and does not apply to its own problem.
    """
    if record.parameters is not None:
        return Point(record.formulation, record.sketch, dict(record.parameters))
    scheduled = recorded(record, *_measured(record, record.problem, target), target)
    return Point(record.formulation, scheduled.sketch, scheduled.values)


def recorded(record: Record, space: SearchSpace, func: Any, target: NATarget) -> Scheduled:
    """The schedule of ``func``, a function of ``space`` in the record's formulation, at the record's point.

    Raises:
        InapplicableError: there is no such point, or the record's trace says anything but what the space does there.
    """
    if record.parameters is not None:
        return _applied(space, func, target, Plan(record.sketch, exact=dict(record.parameters)))
    written = _tried(read_trace, record.trace)
    scheduled = _applied(space, func, target, Plan(written.sketch, exact=written.values))
    difference = written.difference(read_trace(trace_as_json(scheduled.schedule.trace)))
    if difference is not None:
        raise InapplicableError(difference)
    return scheduled


def kernel_name(mod: Any) -> str:
    """What names a scheduled IRModule with a symbolic batch: 16 hex digits of its structural hash."""
    return f"{int(structural_hash(mod)) % 2**64:016x}"


def noted(record: Record) -> Record:
    """A record as a compact one that names the expression and the kernel which it means now.

    Raises:
        InapplicableError: it does not apply to its own problem.
    """
    target = parse_target(record.target)
    point = point_of(record, target)
    _, func = with_formulation(point.formulation, record.problem, target, 1)
    return replace(
        record,
        trace_json="",
        sketch=point.sketch,
        parameters=tuple(point.parameters.items()),
        workload=structural_hash(_module(func)),
        kernel=kernel_name(replayed(record, record.problem, target)),
    )


def change_since(record: Record) -> str | None:
    """Why a record is no longer of the kernel that was measured, in words; None where it is."""
    try:
        module = replayed(record, record.problem, parse_target(record.target))
    except InapplicableError as error:
        return f"it no longer applies: {error}"
    if record.is_compact and kernel_name(module) != record.kernel:
        return "the kernel is another than the one measured; remeasure"
    return None


def describe_record(record: Record) -> str:
    """What people read of a record's schedule, and what has changed since it was measured."""
    from tvm_na.schedules.describe import describe

    try:
        point = point_of(record, parse_target(record.target))
        said = describe(record.formulation, point.sketch, point.parameters)
    except InapplicableError:
        said = describe(record.formulation)
    change = change_since(record)
    return "; ".join([*said, *([] if change is None else [change])])


# Several records are tried one after the other, and expressions take longer to make than anything else here.
@functools.lru_cache(maxsize=8)
def _formulations(space: SearchSpace, problem: Problem, target: NATarget, batch: int | None) -> Sequence[Any]:
    return space.formulations(problem, target, batch)


def with_formulation(
    formulation: str, problem: Problem, target: NATarget, batch: int | None, scope: Scope = "formulation"
) -> tuple[SearchSpace, Any]:
    """The PrimFunc of ``problem`` with a formulation, and its space (imports TVM).

    Raises:
        InapplicableError: of ``scope``; it has none.
    """
    for space in spaces_for(problem, target):
        for func in _formulations(space, problem, target, batch):
            if formulation_of(func) == formulation:
                return space, func
    raise InapplicableError(f"{problem} has no formulation {formulation}", scope)


def _nearest_formulation(formulation: str, problem: Problem, target: NATarget) -> tuple[SearchSpace, Any]:
    """The PrimFunc of ``problem`` whose formulation is the most like one of another level, and its space.

    Its vectors count first, which another level may have longer or shorter, then the other fields.

    Raises:
        InapplicableError: none has its name.
    """
    wanted: dict[str, Any] = _tried(lambda: dict(json.loads(formulation)))

    def distance(found: tuple[SearchSpace, Any]) -> tuple[float, float]:
        fields = json.loads(formulation_of(found[1]))
        numbers = [(name, value) for name, value in fields.items() if name != "formulation"]
        far = {name: abs(log2((1 + value) / (1 + wanted.get(name, 0)))) for name, value in numbers}
        return far.pop("vector", 0.0), sum(far.values())

    same = [
        (space, func)
        for space in spaces_for(problem, target)
        for func in _formulations(space, problem, target, None)
        if json.loads(formulation_of(func))["formulation"] == wanted.get("formulation")
    ]
    if not same:
        raise InapplicableError(f"{problem} has no formulation {formulation}", "formulation")
    nearest: tuple[SearchSpace, Any] = _tried(lambda: min(same, key=distance))
    return nearest


def _measured(record: Record, problem: Problem, target: NATarget) -> tuple[SearchSpace, Any]:
    """The space and the PrimFunc that a record was measured with."""
    space, func = with_formulation(record.formulation, problem, target, 1, "workload")
    if structural_hash(_module(func)) != record.workload:
        raise InapplicableError("the expression has changed since it was measured", "workload")
    return space, func


def _applied(space: SearchSpace, func: Any, target: NATarget, plan: Plan) -> Scheduled:
    scheduled = _tried(space.apply, func, target, plan)
    if scheduled is None:
        raise InapplicableError("the search space refuses its function")
    return scheduled


def _module(func: Any) -> Any:
    import tvm

    return tvm.IRModule({"main": func})


def _tried(function: Any, *arguments: Any) -> Any:
    # TVM's errors have no class in common, and whatever is wrong with a record must not stop a build.
    try:
        return function(*arguments)
    except Exception as error:
        raise InapplicableError(f"{type(error).__name__}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
