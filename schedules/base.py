"""What a search space is, and how it makes decisions.

A space schedules a PrimFunc by ``apply(func, target, plan) -> Scheduled | None``: None where it does not serve
``func`` on ``target``. Where loops can be nested in ways that differ by more than numbers, each way is a
*structure* of the space; everything else is a *decision*. Every decision goes through :class:`Decisions`, which
takes the default, the value that a plan wishes for, or one that MetaSchedule draws; all leave the same trace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.problems.unfused import UnfusedProblem

#: The key of the block annotation under which a trace keeps the name of its structure.
STRUCTURE = "tvm_na.structure"


@dataclass(frozen=True)
class Plan:
    """Which point of a space is wanted.

    Attributes:
        structure: The name of the structure; None for the default one.
        sample: Whether MetaSchedule draws the decisions.
        seed: For MetaSchedule's draws; None for another one each time.
        like: Values to take, by the name of the decision; where one is no option, the nearest is taken.
            Decisions without one take their defaults.
    """

    structure: str | None = None
    sample: bool = False
    seed: int | None = None
    like: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One decision that was made.

    Attributes:
        name: What was decided, in a few words.
        options: All values that it could have.
        value: The value it has.
    """

    name: str
    options: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class Scheduled:
    """A scheduled function.

    Attributes:
        schedule: TVM's Schedule of a module with the function.
        structure: The structure's name.
        choices: The decisions, in the order in which the trace has them.
    """

    schedule: Any
    structure: str
    choices: tuple[Choice, ...]

    @property
    def points(self) -> int:
        """How many points this structure has."""
        return prod(len(choice.options) for choice in self.choices)


class Decisions:
    """Makes the decisions of one schedule and remembers them.

    Attributes:
        made: The decisions so far.
    """

    def __init__(self, sch: Any, plan: Plan) -> None:
        self._sch, self._plan = sch, plan
        self.made: list[Choice] = []

    def _wanted(self, name: str, options: Sequence[int], default: int) -> int:
        if name not in self._plan.like:
            return default
        return min(options, key=lambda option: abs(option - self._plan.like[name]))

    def _made(self, name: str, options: Sequence[int], variable: Any) -> None:
        self.made.append(Choice(name, tuple(options), int(self._sch.get(variable))))

    def one_of(self, name: str, options: Sequence[int], default: int) -> Any:
        """One of ``options`` (distinct); ``default`` must be among them."""
        index = list(options).index(self._wanted(name, options, default))
        probability = [1.0 / len(options)] * len(options)
        decision = None if self._plan.sample else index
        variable = self._sch.sample_categorical(list(options), probability, decision=decision)
        self._made(name, options, variable)
        return variable

    def factors(self, name: str, loop: Any, extent: int, inner: int, limit: int | None = None) -> list[Any]:
        """Two factors whose product is the ``extent`` of ``loop``; ``inner`` is the default of the second.

        The second is at most ``limit``. Several loops of that extent may be split by them.
        """
        options = [d for d in divisors(extent) if d <= (limit or extent)]
        inner = self._wanted(name, options, inner)
        decision = None if self._plan.sample else [extent // inner, inner]
        found = self._sch.sample_perfect_tile(loop, n=2, max_innermost_factor=limit or extent, decision=decision)
        self._made(name, options, found[1])
        return list(found)

    def split(self, name: str, loop: Any, extent: int, inner: int, limit: int | None = None) -> list[Any]:
        """Split ``loop`` by :meth:`factors`."""
        return list(self._sch.split(loop, self.factors(name, loop, extent, inner, limit), preserve_unit_iters=True))


@dataclass(frozen=True)
class Opened:
    """A PrimFunc of a space that is to be scheduled.

    Attributes:
        schedule: TVM's Schedule of a module with the function, as it is.
        problem: What the function computes.
        formulation: What its formulation depends on, by name.
        structure: The structure that is wanted.
        decide: Makes the decisions.
    """

    schedule: Any
    problem: Problem
    formulation: dict[str, Any]
    structure: str
    decide: Decisions

    def scheduled(self, block: str = "out") -> Scheduled:
        """The function, now that it is scheduled; the trace keeps the name of its structure, as a note at ``block``."""
        self.schedule.annotate(self.schedule.get_sblock(block), STRUCTURE, self.structure)
        return Scheduled(self.schedule, self.structure, tuple(self.decide.made))


def _in_formulation(func: Any, *formulations: str) -> bool:
    if not func.attrs or "tvm_na.formulation" not in func.attrs:
        return False
    return json.loads(str(func.attrs["tvm_na.formulation"]))["formulation"] in formulations


def problem_of(func: Any, formulation: str) -> NAProblem | None:
    """The attention that a PrimFunc computes; None if it is not in that formulation."""
    return NAProblem.from_json(str(func.attrs["tvm_na.problem"])) if _in_formulation(func, formulation) else None


def backward_of(func: Any, formulation: str) -> BackwardProblem | None:
    """The gradients that a PrimFunc computes; None if it is not in that formulation."""
    return BackwardProblem.from_json(str(func.attrs["tvm_na.problem"])) if _in_formulation(func, formulation) else None


def unfused_of(func: Any, *formulations: str) -> UnfusedProblem | None:
    """What a PrimFunc of the unfused operators computes; None if it is in none of those formulations."""
    return UnfusedProblem.from_json(str(func.attrs["tvm_na.problem"])) if _in_formulation(func, *formulations) else None


def open_func(func: Any, plan: Plan, structures: Sequence[str]) -> Opened:
    """A PrimFunc with a problem and a formulation, ready to be scheduled (imports TVM).

    Args:
        func: The PrimFunc.
        plan: Which point of its space is wanted.
        structures: The structures of the space, the default first.

    Raises:
        ValueError: the plan wants another structure.
    """
    import tvm
    from tvm import s_tir

    structure = plan.structure or structures[0]
    if structure not in structures:
        raise ValueError(f"structure: required one of {', '.join(structures)}, got {structure}")
    formulation = json.loads(str(func.attrs["tvm_na.formulation"]))
    del formulation["formulation"]
    problem = problem_from_json(str(func.attrs["tvm_na.problem"]))
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), seed=plan.seed)
    return Opened(sch, problem, formulation, structure, Decisions(sch, plan))


def choices_of(trace: Any, scheduled: Scheduled) -> tuple[Choice, ...]:
    """The decisions in ``trace``, named as those of ``scheduled``, a schedule of the same function and structure.

    Raises:
        ValueError: if the trace has other decisions.
    """
    sampled = [inst for inst in trace.insts if inst.kind.name.startswith("Sample")]
    if len(sampled) != len(scheduled.choices):
        raise ValueError(f"trace: required {len(scheduled.choices)} decisions, got {len(sampled)}")
    found = []
    for inst, choice in zip(sampled, scheduled.choices, strict=True):
        decision, tile = trace.get_decision(inst), inst.kind.name == "SamplePerfectTile"
        value = int(decision[-1] if tile else inst.attrs[0][int(decision)])
        if value not in choice.options:
            raise ValueError(f"trace: required {choice.name} in {choice.options}, got {value}")
        found.append(Choice(choice.name, choice.options, value))
    return tuple(found)


def structure_of(trace: Any) -> str | None:
    """The name of the structure that ``trace`` was made with; None if it has none."""
    for inst in trace.insts:
        if inst.kind.name == "Annotate" and str(inst.attrs[0]) == STRUCTURE:
            return str(inst.inputs[1])
    return None


def divisors(n: int) -> list[int]:
    """The divisors of ``n`` from 1 to ``n``."""
    return [d for d in range(1, n + 1) if n % d == 0]


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit`` (and at least 1)."""
    return max(d for d in divisors(n) if d <= max(1, limit))
