"""A tuning record put on a function: replayed on its own problem, or transferred to another (imports TVM).

Records are measured with a batch of 1, since MetaSchedule wants sizes; kernels are built with a symbolic batch.
No schedule splits the batch, so the trace of the one applies to the other.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.read import Record
from tvm_na.records.rejections import InapplicableError, Scope
from tvm_na.records.write import structural_hash
from tvm_na.schedules import SearchSpace, spaces_for
from tvm_na.schedules.base import Parameter, Plan, Scheduled, parameters_of, sketch_of
from tvm_na.targets.target import NATarget, parse_target


def formulation_of(func: Any) -> str:
    """The formulation of a PrimFunc, as canonical JSON."""
    return str(func.attrs["tvm_na.formulation"])


def replayed(record: Record, problem: Problem, target: NATarget) -> Any:
    """The IRModule of ``problem`` scheduled as ``record`` says, with a symbolic batch.

    Raises:
        InapplicableError: the expression is another than the one that was measured, or the trace fails.
    """
    _measured(record, problem, target)
    return with_trace(problem, record.formulation, record.trace, target)


def with_trace(problem: Problem, formulation: str, trace: Any, target: NATarget) -> Any:
    """The IRModule of ``problem`` in a formulation (canonical JSON), with a symbolic batch, scheduled by a trace.

    The trace is MetaSchedule's, as a JSON object, found with any batch.

    Raises:
        InapplicableError: there is no such formulation, or the trace fails.
    """
    return _apply_trace(trace, *_with_formulation(formulation, problem, target, None), target).mod


def transferred(record: Record, problem: Problem, target: NATarget) -> Any:
    """The IRModule of ``problem``, scheduled with the parameters of the record of another one.

    Raises:
        InapplicableError: its formulation or sketch is none of those of ``problem``, or it does not apply to
            its own problem.
    """
    space, func = _with_formulation(record.formulation, problem, target, None)
    sketch, parameters = point_of(record, target)
    if sketch not in space.sketches(func, target):
        raise InapplicableError(f"{problem} has no sketch {sketch!r}")
    like = {parameter.name: parameter.value for parameter in parameters}
    return _applied(space, func, target, Plan(sketch, like=like)).schedule.mod


def point_of(record: Record, target: NATarget) -> tuple[str, tuple[Parameter, ...]]:
    """The sketch and the tunable parameters of a record.

    Raises:
        InapplicableError: it does not apply to its own problem, or its parameters are not those of the space.
    """
    space, func = _measured(record, record.problem, target)
    trace = _apply_trace(record.trace, space, func, target).trace
    sketch = sketch_of(trace)
    if sketch is None or sketch not in space.sketches(func, target):
        raise InapplicableError(f"the search space has no sketch {sketch!r}")
    return sketch, _tried(parameters_of, trace, _applied(space, func, target, Plan(sketch)))


def describe_record(record: Record) -> str:
    """What people read of a record's schedule; where it no longer applies, of its formulation, and why not."""
    from tvm_na.schedules.describe import describe

    try:
        sketch, parameters = point_of(record, parse_target(record.target))
    except InapplicableError as error:
        return "; ".join([*describe(record.formulation), f"it no longer applies: {error}"])
    return "; ".join(describe(record.formulation, sketch, parameters))


def workloads_of(problem: Problem, target: NATarget) -> dict[str, str]:
    """The workloads that a problem has now: formulation by structural hash."""
    return {
        structural_hash(_module(func)): formulation_of(func)
        for space in spaces_for(problem, target)
        for func in _formulations(space, problem, target, 1)
    }


# Several records are tried one after the other, and expressions take longer to make than anything else here.
@functools.lru_cache(maxsize=8)
def _formulations(space: SearchSpace, problem: Problem, target: NATarget, batch: int | None) -> list[Any]:
    return space.formulations(problem, target, batch)


def _with_formulation(
    formulation: str, problem: Problem, target: NATarget, batch: int | None, scope: Scope = "formulation"
) -> tuple[SearchSpace, Any]:
    """The PrimFunc of ``problem`` with a formulation, and its space; InapplicableError of ``scope`` if it has none."""
    for space in spaces_for(problem, target):
        for func in _formulations(space, problem, target, batch):
            if formulation_of(func) == formulation:
                return space, func
    raise InapplicableError(f"{problem} has no formulation {formulation}", scope)


def _measured(record: Record, problem: Problem, target: NATarget) -> tuple[SearchSpace, Any]:
    """The space and the PrimFunc that a record was measured with."""
    space, func = _with_formulation(record.formulation, problem, target, 1, "workload")
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


def _apply_trace(trace: Any, space: SearchSpace, func: Any, target: NATarget) -> Any:
    """A schedule of ``func``, of ``space``, with a trace (a JSON object)."""
    from tvm import s_tir
    from tvm.s_tir.schedule import Trace

    if any(instruction[0] == "Tensorize" for instruction in trace[0]):
        # A trace has no more than their names; a space makes them when it schedules.
        _tried(_make_tensor_instructions, space, formulation_of(func), str(func.attrs["tvm_na.problem"]), target)
    schedule = s_tir.Schedule(_module(func))
    _tried(Trace.apply_json_to_schedule, trace, schedule)
    return schedule


@functools.lru_cache(maxsize=64)
def _make_tensor_instructions(space: SearchSpace, formulation: str, problem: str, target: NATarget) -> None:
    _, func = _with_formulation(formulation, problem_from_json(problem), target, 1)
    for sketch in space.sketches(func, target):
        space.apply(func, target, Plan(sketch))


def _tried(function: Any, *arguments: Any) -> Any:
    # TVM's errors have no class in common, and whatever is wrong with a record must not stop a build.
    try:
        return function(*arguments)
    except Exception as error:
        raise InapplicableError(f"{type(error).__name__}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
